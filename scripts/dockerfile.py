"""Read a Dockerfile, and run its steps in a folder that holds a base image, without a Docker engine.

    scripts/dockerfile.py build [--build-arg NAME=VALUE]... ROOT
    scripts/dockerfile.py run [--user UID:GID] [--env NAME=VALUE]... ROOT WORD...

The first runs every step in order, the second a command in what was built. They cover what this repository's
Dockerfile uses, and refuse the rest. `try_dockerfile.sh` prepares ROOT.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CONTEXT = Path(__file__).resolve().parent.parent
STATE = "image.json"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Instruction:
    """One instruction: its line in the file, its name, its ``--flags``, and the rest of its text."""

    line: int
    name: str
    flags: dict[str, str]
    text: str


@dataclass
class Image:
    """What the instructions so far have set."""

    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    args: dict[str, str] = field(default_factory=dict)
    shell: list[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    workdir: str = "/"
    user: str = "0:0"

    def expand(self, text: str) -> str:
        return string.Template(text).substitute(self.args | self.env)


def parse(text: str) -> list[Instruction]:
    """The instructions, comments left out and continued lines joined."""
    found: list[Instruction] = []
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = [line]
        while parts[-1].endswith("\\"):
            following = next(lines)[1]
            if not following.lstrip().startswith("#"):
                parts[-1] = parts[-1][:-1]
                parts.append(following)
        name, _, rest = "".join(parts).strip().partition(" ")
        flags = {}
        while flag := re.match(r"\s*--([a-z-]+)=(\S+)\s+", rest):
            flags[flag[1]] = flag[2]
            rest = rest[flag.end() :]
        found.append(Instruction(number, name.upper(), flags, rest.strip()))
    return found


def context_files(context: Path) -> Iterator[Path]:
    """The files and links that `.dockerignore` lets into the build, relative to ``context``."""
    patterns = [line for line in (context / ".dockerignore").read_text().split("\n") if line and line[0] != "#"]
    for folder, folders, names in os.walk(context):
        here = Path(folder).relative_to(context)
        links = [name for name in folders if (context / here / name).is_symlink()]
        folders[:] = [name for name in folders if name not in links and not ignored(here / name, patterns)]
        yield from (here / name for name in sorted(names + links) if not ignored(here / name, patterns))


def ignored(path: Path, patterns: list[str]) -> bool:
    """Whether the last pattern that matches the path takes it out; one that matches a folder holds for all in it."""
    out = False
    for pattern in patterns:
        keep, pattern = pattern.startswith("!"), pattern.lstrip("!").strip("/")
        parts = re.split(r"(\*\*/|\*|\?)", pattern)
        meaning = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
        if re.fullmatch("".join(meaning.get(part, re.escape(part)) for part in parts) + "(/.*)?", path.as_posix()):
            out = not keep
    return out


def build(root: Path, build_args: dict[str, str]) -> None:
    """Run every instruction in ``root``. Raises CalledProcessError where a step fails."""
    image = Image()
    outside = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    for step in parse((CONTEXT / "Dockerfile").read_text()):
        print(f"\n[line {step.line}] {step.name} {textwrap.shorten(step.text, 100)}", flush=True)
        match step.name:
            case "FROM":
                image.args = {}  # an ARG before FROM is not seen after it
            case "ARG":
                name, _, default = step.text.partition("=")
                image.args[name] = build_args.get(name, image.expand(default))
            case "ENV":
                image.env |= dict(image.expand(word).split("=", 1) for word in shlex.split(step.text))
            case "SHELL":
                image.shell = json.loads(step.text)
            case "WORKDIR":
                image.workdir = image.expand(step.text)
                (root / image.workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = image.expand(step.text)
            case "COPY":
                copy(root, image, step)
            case "RUN":
                # A cache mount is an ordinary folder, which may be there already.
                cache = re.search(r"target=([^, ]+)", step.flags.get("mount", ""))
                if cache:
                    (root / cache[1].lstrip("/")).mkdir(parents=True, exist_ok=True)
                run(root, image, [*image.shell, step.text], outside | image.args)
            case "HEALTHCHECK" | "CMD":
                pass  # nothing happens in a build
            case other:
                raise SystemExit(f"line {step.line}: {other} is not covered")
    (root / STATE).write_text(json.dumps({"env": image.env, "workdir": image.workdir, "user": image.user}))


def copy(root: Path, image: Image, step: Instruction) -> None:
    """Copy from the context; as in Docker, a folder's content goes into the target, which itself stays as it is."""
    *sources, target = (image.expand(word) for word in step.text.split())
    into = root / Path(image.workdir, target).as_posix().lstrip("/")
    uid, gid = (int(number) for number in image.expand(step.flags.get("chown", "0:0")).split(":"))
    wanted = [Path(source) for source in sources]
    for path in context_files(CONTEXT):
        for source in wanted:
            if source not in (path, *path.parents):
                continue
            to = into / (path.relative_to(source) if source != path else path.name)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CONTEXT / path, to, follow_symlinks=False)
            for made in (to, *to.parents):
                if made == into:
                    break
                os.chown(made, uid, gid, follow_symlinks=False)


def run(root: Path, image: Image, words: list[str], args: dict[str, str] | None = None) -> None:
    """Run a command as the image's user, in its folder and with its environment."""
    uid, gid = (int(number) for number in image.user.split(":"))

    def enter() -> None:
        os.chroot(root)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        os.chdir(image.workdir)

    env = {"HOME": home(root, uid)} | (args or {}) | image.env
    subprocess.run(words, env=env, preexec_fn=enter, check=True, stdin=subprocess.DEVNULL)


def home(root: Path, uid: int) -> str:
    """The folder that Docker sets as HOME."""
    entries = (line.split(":") for line in (root / "etc/passwd").read_text().splitlines())
    return next((entry[5] for entry in entries if entry[2] == str(uid)), "/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build")
    building.add_argument("root", type=Path)
    building.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    running = commands.add_parser("run")
    running.add_argument("root", type=Path)
    running.add_argument("--user")
    running.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    running.add_argument("words", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    try:
        if given.command == "build":
            build(given.root, dict(pair.split("=", 1) for pair in given.build_arg))
        else:
            image = Image(**json.loads((given.root / STATE).read_text()))
            image.user = given.user or image.user
            image.env |= dict(pair.split("=", 1) for pair in given.env)
            run(given.root, image, given.words)
    except subprocess.CalledProcessError as error:
        sys.exit(f"status {error.returncode}")


if __name__ == "__main__":
    main()
