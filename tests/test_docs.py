"""Commands in the documentation name options, arguments and shipped configurations that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from crossmodal import losses
from crossmodal.cli import app
from crossmodal.commands.subjects import FLAGS, WITHOUT_MEANING
from crossmodal.train import published_aladin
from crossmodal.train.recipe import parse_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = {"train_itm.py": "train", "test_itm.py": "test"}
ALADIN = published_aladin.READ["flags"] | published_aladin.FLAGS.keys() | published_aladin.WITHOUT_MEANING["flags"]
PUBLISHED = {"test": FLAGS | WITHOUT_MEANING | ALADIN, "train": ALADIN}


def commands(text: str) -> list[list[str]]:
    """The words after `crossmodal` of every command of ours in the code blocks, continued lines joined."""
    found = []
    for language, block in re.findall(r"^ *```([a-z]*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        shell = language in ("", "sh", "bash", "shell", "console")
        for line in block.replace("\\\n", " ").splitlines() if shell else ():
            words = shlex.split(line, comments=True) if re.search(r"crossmodal|_itm\.py", line) else []
            words = words[words.index("&&") + 1 :] if "&&" in words else words
            for i, word in enumerate(words):
                if Path(word).name in SCRIPTS:
                    found.append([SCRIPTS[Path(word).name], *words[i + 1 :]])
                elif word == "crossmodal" and i == 0:
                    found.append(words[1:])
    return found


def pages() -> list[tuple[str, list[str]]]:
    return [(str(page.relative_to(ROOT)), words) for page in PAGES for words in commands(page.read_text())]


def find(words: list[str]) -> tuple[Any, list[str], str]:
    """The command that the first words name, the words after them, and its name."""
    command: Any = typer.main.get_command(app)
    name = "crossmodal"
    while hasattr(command, "commands"):
        assert words, f"{name} needs a command"
        assert words[0] in command.commands, f"{name} has no command {words[0]}"
        name, command, words = words[0], command.commands[words[0]], words[1:]
    return command, words, name


def check(words: list[str]) -> None:
    """Raises AssertionError for a word that the command does not take."""
    if words and words[0] in ("--help", "-h"):
        return
    command, words, name = find(words)
    options = {spelling: p for p in command.params for spelling in (*p.opts, *p.secondary_opts) if spelling[0] == "-"}
    published = {f"--{flag}" for flag in PUBLISHED.get(name, ())}
    config = None
    positional = 0
    while words:
        word, *words = words
        if not word.startswith("-"):
            positional += 1
            continue
        word, equals, value = word.partition("=")
        assert word in options or word in published or word in ("--help", "-h"), f"{name} has no option {word}"
        takes_value = not options[word].is_flag if word in options else bool(words) and not words[0].startswith("--")
        if takes_value and not equals:
            assert words, f"{name} {word} needs a value"
            value, *words = words
        if word == "--config":
            config = value
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    assert positional <= len(arguments), f"{name} takes {len(arguments)} arguments, not {positional}"
    if config and config.startswith("configs/"):
        assert (ROOT / config).is_file(), f"there is no {config}"


def test_the_documentation_shows_commands() -> None:
    assert {"train", "test"} <= {words[0] for _, words in pages()}


@pytest.mark.parametrize(
    ("page", "words"), pages(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_commands_exist_as_documented(page: str, words: list[str]) -> None:
    check(words)


def recipes() -> list[tuple[str, str]]:
    """The blocks of YAML that are whole recipes."""
    blocks = [(page, b) for page in PAGES for b in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)]
    return [(str(page.relative_to(ROOT)), b) for page, b in blocks if {"data", "streams"} <= yaml.safe_load(b).keys()]


@pytest.mark.parametrize(("page", "text"), recipes())
def test_recipes_can_be_read(page: str, text: str) -> None:
    for stream in parse_recipe(yaml.safe_load(text), where=page).streams:
        assert {loss.use for loss in stream.losses} <= set(losses.names())


def test_every_loss_stands_in_the_guide() -> None:
    guide = (ROOT / "docs" / "choosing-a-loss.md").read_text()
    assert [name for name in losses.names() if f"`{name}`" not in guide and "test_" not in name] == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("crossmodal data regions x.tsv --ouput y", "regions has no option --ouput"),
        ("python test_itm.py --checkpoint x --conf_ht 3", "test has no option --conf_ht"),
        ("torchrun --nproc-per-node 2 train_itm.py --confg x", "train has no option --confg"),
        ("cd there && crossmodal trian", "crossmodal has no command trian"),
        ("crossmodal data check a b", "check takes 1 arguments, not 2"),
        ("python train_itm.py --config configs/none.yaml", "there is no configs/none.yaml"),
        ("crossmodal test --checkpoint \\\n  x --folds", "test --folds needs a value"),
    ],
)
def test_a_wrong_command_would_be_found(line: str, said: str) -> None:
    (words,) = commands(f"text\n\n```sh\nmake demo\n{line}\n```\n")
    with pytest.raises(AssertionError, match=said):
        check(words)


def test_links_between_pages_resolve() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
