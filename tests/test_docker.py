"""The Dockerfile, what goes into its build, and the shell scripts: linted, and its steps run where they harm nothing.

`scripts/try_dockerfile.sh` runs all steps, in a fresh Debian; it takes minutes and is not part of the tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [ROOT / "launch_container.sh", ROOT / ".ci/run", *sorted((ROOT / "scripts").glob("*.sh"))]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dockerfile", ROOT / "scripts/dockerfile.py")
    assert spec and spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dockerfile = _load()
STEPS = dockerfile.parse((ROOT / "Dockerfile").read_text())


def texts(name: str) -> list[str]:
    return [step.text for step in STEPS if step.name == name]


def step_that_says(words: str) -> str:
    (found,) = [text for text in texts("RUN") if words in text]
    return found


def lint(tool: str, *arguments: object, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """The linter of the development extras: beside the interpreter, or on PATH."""
    found = shutil.which(tool, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found, f"the tests need {tool}: pip install -e '.[dev]'"
    return subprocess.run([found, *map(str, arguments)], input=given, capture_output=True, text=True, timeout=120)


def bash(step: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a step as the Dockerfile's SHELL does."""
    return subprocess.run(
        [*json.loads(texts("SHELL")[0]), step], env=environment, capture_output=True, text=True, timeout=60
    )


def executable(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def test_hadolint_finds_nothing() -> None:
    done = lint("hadolint", "--no-color", ROOT / "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_hadolint_is_told_to_ignore_has_a_reason_above_it() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    ignores = [i for i, line in enumerate(lines) if "hadolint ignore" in line]
    assert ignores and all(re.match(r"# [A-Z].*\.$|# [a-z].*\.$", lines[i - 1]) for i in ignores)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    done = lint("shellcheck", script)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linters_would_find_something() -> None:
    assert "DL3006" in lint("hadolint", "--no-color", "-", given="FROM debian\n").stdout
    assert "SC2086" in lint("shellcheck", "-", given="#!/bin/sh\nrm $1\n").stdout


def test_every_argument_is_used() -> None:
    names = [text.partition("=")[0] for text in texts("ARG")]
    assert names == ["BASE", "SSH", "USER_UID", "USER_GID", "TORCH", "TORCH_INDEX"]
    uses = " ".join(str(step) for step in STEPS if step.name != "ARG")
    assert [name for name in names if not re.search(rf"\${name}\b|\${{{name}}}", uses)] == []


@pytest.mark.parametrize("step", texts("RUN"), ids=lambda text: text[:40])
def test_steps_are_valid_shell(step: str) -> None:
    assert subprocess.run(["bash", "-n", "-c", step], capture_output=True).returncode == 0


def test_the_image_acts_as_an_ordinary_user_and_says_whether_it_is_healthy() -> None:
    assert texts("USER") == ["${USER_UID}:${USER_GID}"]
    assert {"USER_UID=1000", "USER_GID=1000"} <= set(texts("ARG"))
    assert [step.name for step in STEPS][-3:] == ["USER", "HEALTHCHECK", "CMD"]
    assert texts("HEALTHCHECK") == ['CMD ["crossmodal", "doctor"]']
    assert texts("WORKDIR") == ["/src"] and texts("RUN")[-1].endswith("-e .")


def test_the_base_is_a_release_of_pytorch_with_kernels_for_the_v100() -> None:
    (base,) = (text for text in texts("ARG") if text.startswith("BASE="))
    release = re.fullmatch(r"BASE=pytorch/pytorch:2\.(\d+)\.\d+-cuda12\.6-cudnn9-devel", base)
    assert release and 6 <= int(release[1]) < 15, "PyTorch 2.15 plans to drop its builds for CUDA 12.6"


def test_what_goes_into_the_build_is_small_and_enough() -> None:
    files = {path.as_posix() for path in dockerfile.context_files(ROOT)}
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "crossmodal/__init__.py", "data"} <= files
    assert {text.split()[0] for text in texts("COPY")} <= files | {"."}
    assert sum((ROOT / name).lstat().st_size for name in files) < 4 << 20
    unwanted = re.compile(r"(^|/)(\.git|\.venv|__pycache__|runs|build|dist|\.[a-z_]+_cache)/")
    assert [name for name in files if unwanted.search(name)] == []


@pytest.mark.parametrize(
    ("pattern", "ignored", "kept"),
    [
        (".git", [".git/config"], [".gitignore", "a/.git"]),
        ("**/__pycache__", ["__pycache__/a.pyc", "a/b/__pycache__/c.pyc"], ["a/pycache"]),
        ("*.egg-info", ["a.egg-info/PKG-INFO"], ["a/b.egg-info"]),
        (".*_cache", [".ruff_cache/x"], ["a/.ruff_cache", "my_cache"]),
        ("tests/golden", ["tests/golden/a/b"], ["tests/golden.py"]),
        ("runs\n!runs/kept", ["runs/x"], ["runs/kept"]),
    ],
)
def test_patterns_of_dockerignore(pattern: str, ignored: list[str], kept: list[str]) -> None:
    assert all(dockerfile.ignored(Path(path), pattern.split("\n")) for path in ignored)
    assert not any(dockerfile.ignored(Path(path), pattern.split("\n")) for path in kept)


def test_instructions_are_read_as_docker_reads_them() -> None:
    read = dockerfile.parse(
        "# one\n\nRUN --mount=type=cache,target=/x \\\n  a \\\n# inside\n  b\nCOPY --chown=1:2 . .\n"
    )
    assert [(step.line, step.name, step.flags) for step in read] == [
        (3, "RUN", {"mount": "type=cache,target=/x"}),
        (7, "COPY", {"chown": "1:2"}),
    ]
    assert [step.text.split() for step in read] == [["a", "b"], [".", "."]]


@pytest.mark.parametrize(("ssh", "extra"), [("0", []), ("1", ["openssh-client", "openssh-server"])])
def test_packages(ssh: str, extra: list[str], tmp_path: Path) -> None:
    executable(tmp_path / "apt-get", f'echo "$@" >> {tmp_path}/words')
    executable(tmp_path / "rm", "")
    executable(tmp_path / "python3", "")
    done = bash(step_that_says("apt-get"), SSH=ssh, PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    update, install = (tmp_path / "words").read_text().splitlines()
    assert update == "update"
    assert shlex.split(install) == ["install", "-y", "--no-install-recommends", "git", "make", "g++", *extra]


@pytest.mark.parametrize(
    ("there", "said"),
    [([], "cpu"), (["nvcc"], "NCCL SHARED system"), (["nvcc", "wheel"], "NCCL SHARED {opt}/nccl")],
    ids=["cpu", "system", "wheel"],
)
def test_horovod_works_through_nccl_where_cuda_is(there: list[str], said: str, tmp_path: Path) -> None:
    opt, tools = tmp_path / "opt", tmp_path / "tools"
    opt.mkdir()
    tools.mkdir()
    for name in ("mkdir", "ln"):
        (tools / name).symlink_to(str(shutil.which(name)))
    shown = (
        '"${HOROVOD_GPU_OPERATIONS-cpu}" ${HOROVOD_NCCL_LINK-} ${HOROVOD_GPU_OPERATIONS:+${HOROVOD_NCCL_HOME-system}}'
    )
    executable(opt / "build_horovod.sh", f"echo {shown}; echo $HOROVOD_CACHE")
    executable(tools / "python3", "echo /site-packages/nvidia/nccl" if "wheel" in there else "exit 1")
    if "nvcc" in there:
        executable(tools / "nvcc", "")
    done = bash(step_that_says("nccl").replace("/opt/", f"{opt}/"), PATH=str(tools))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [said.format(opt=opt), "/var/cache/horovod"]
    library = opt / "nccl/lib/libnccl.so"
    assert library.is_symlink() == ("wheel" in there)
    assert "wheel" not in there or os.readlink(library) == "/site-packages/nvidia/nccl/lib/libnccl.so.2"


def test_scripts_are_executable() -> None:
    assert [script.name for script in SCRIPTS[:1] + SCRIPTS[2:] if not os.access(script, os.X_OK)] == []


def test_the_trial_of_the_steps_says_how_it_is_used() -> None:
    script = ROOT / "scripts/try_dockerfile.sh"
    done = subprocess.run(["bash", script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: scripts/try_dockerfile.sh [options] ROOT" in done.stdout
    assert subprocess.run(["bash", script, "--nothing"], capture_output=True).returncode == 2
    assert subprocess.run(["bash", script, ROOT], capture_output=True).returncode == 2
