"""The `crossmodal` command. Heavy imports stand inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence

import typer

from crossmodal.disk import reason_of
from crossmodal.errors import CrossmodalError
from crossmodal.train.interrupts import Interrupted

app = typer.Typer(
    name="crossmodal",
    help="Find the captions of an image and the images of a caption.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _assemble() -> None:
    from crossmodal.commands import data, demo, doctor, evaluate, export, flags, registries, test, train

    app.add_typer(data.app, name="data")
    options = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("train", cls=flags.TrainCommand, context_settings=options)(train.train)
    app.command("test", context_settings=options)(test.test)
    app.command("evaluate")(evaluate.evaluate)
    app.command("demo")(demo.demo)
    app.command("doctor")(doctor.doctor)
    app.command("export")(export.export)
    app.command("losses")(registries.losses)
    app.command("models")(registries.models)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; a user's mistake is one sentence and exit code 2, its traceback with `--debug`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        status = app(words, standalone_mode=False)
    except CrossmodalError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as end:  # it has said how to go on
        return 128 + end.number
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        full = reason_of(error)
        if full is not None:
            if debug:
                traceback.print_exc()
            print(f"error: not everything could be written: {full}; free some space and repeat it", file=sys.stderr)
            return 2
        show = getattr(error, "show", None)  # a usage error of the command line itself
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))
    return int(status or 0)


_assemble()


def main() -> None:
    sys.exit(run())


if __name__ == "__main__":
    main()
