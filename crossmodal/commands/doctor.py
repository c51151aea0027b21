"""`crossmodal doctor`: can this machine train and evaluate?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    databases: Annotated[
        list[Path] | None, typer.Argument(help="Text and image databases, or folders of some, to look at.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder that runs are to be written to; the current one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is there to train and evaluate with, and what is wrong. Exit status 1 if anything is.

    Of several processes under torchrun or horovodrun, the first alone looks and prints.
    """
    import json
    from dataclasses import asdict

    from crossmodal.doctor import PROBLEM, examine, launcher

    if launcher().rank > 0:
        return
    findings = examine(databases or (), output)
    problems = sum(finding.level == PROBLEM for finding in findings)
    if as_json:
        print(json.dumps({"healthy": not problems, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            print(str(finding).encode(errors="backslashreplace").decode())  # names of files may be any bytes
        print(f"{problems} problem{'s' * (problems > 1)}" if problems else "healthy")
    raise typer.Exit(int(problems > 0))
