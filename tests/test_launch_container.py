"""launch_container.sh, run and sourced by real shells; docker is replaced only where it would be started."""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "launch_container.sh"
SHELLS = [shell for shell in ("bash", "zsh") if shutil.which(shell)]


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """TXT_DB IMG_DB OUTPUT PRETRAIN, one of them with a blank and a quote in its name."""
    names = ["txt", "img", "out put's", "pretrain"]
    for name in names:
        (tmp_path / name).mkdir()
    return [str(tmp_path / name) for name in names]


def shell(
    command: list[str], *, path: str | None = None, stdin: int = subprocess.DEVNULL, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    env = {**kept, **environment} | ({"PATH": path} if path is not None else {})
    return subprocess.run(command, env=env, stdin=stdin, capture_output=True, text=True, timeout=60)


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return shell([str(SCRIPT), *arguments], **environment)


def words(folders: list[str], *, gpus: str | None, image: str = "crossmodal", terminal: str = "-i") -> list[str]:
    """The command that is expected, word for word."""
    txt, img, output, pretrain = folders
    devices = [] if gpus is None else ["--gpus", f'"device={gpus}"', "-e", f"NVIDIA_VISIBLE_DEVICES={gpus}"]
    mounts = [
        f"src={ROOT},dst=/src,type=bind",
        f"src={output},dst=/storage,type=bind",
        f"src={pretrain},dst=/pretrain,type=bind,readonly",
        f"src={txt},dst=/txt,type=bind,readonly",
        f"src={img},dst=/img,type=bind,readonly",
    ]
    mounted = [word for mount in mounts for word in ("--mount", mount)]
    return ["docker", "run", *devices, "--ipc=host", "--rm", terminal, *mounted, "-w", "/src", image]


@pytest.fixture
def fake_docker(tmp_path: Path) -> str:
    """A PATH whose docker writes down its words and ends with status 7."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    docker = binaries / "docker"
    docker.write_text(f'#!/bin/sh\nprintf "%s\\n" docker "$@" > "{tmp_path}/words"\nexit 7\n')
    docker.chmod(0o755)
    return f"{binaries}:{os.environ['PATH']}"


@pytest.fixture
def no_docker(tmp_path: Path) -> str:
    """A PATH with what the script calls, and no docker."""
    binaries = tmp_path / "plain"
    binaries.mkdir()
    for name in ("bash", "cat", "dirname", "sed", "env"):
        found = shutil.which(name)
        assert found
        (binaries / name).symlink_to(found)
    return str(binaries)


def test_dry_run_needs_no_docker_and_prints_the_words(folders: list[str], no_docker: str) -> None:
    result = launch("--dry-run", *folders, path=no_docker)
    assert (result.returncode, result.stderr) == (0, "")
    assert shlex.split(result.stdout) == words(folders, gpus="all")
    assert result.stdout.count("\n") == 1
    assert f"--mount src={folders[0]},dst=/txt,type=bind,readonly" in result.stdout


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ([], {}, {"gpus": "all"}),
        ([], {"CUDA_VISIBLE_DEVICES": "0,2"}, {"gpus": "0,2"}),
        ([], {"CUDA_VISIBLE_DEVICES": ""}, {"gpus": None}),
        ([], {"CUDA_VISIBLE_DEVICES": "-1"}, {"gpus": None}),
        (["--cpu"], {"CUDA_VISIBLE_DEVICES": "0"}, {"gpus": None}),
        (["--image", "my/image:1"], {}, {"gpus": "all", "image": "my/image:1"}),
        (["--image=other", "--cpu"], {}, {"gpus": None, "image": "other"}),
    ],
)
def test_options_stand_anywhere(
    options: list[str], environment: dict[str, str], expected: dict[str, str], folders: list[str]
) -> None:
    for at in range(5):
        arguments = [*folders[:at], *options, *folders[at:], "--dry-run"]
        result = launch(*arguments, **environment)
        assert result.returncode == 0, result.stderr
        assert shlex.split(result.stdout) == words(folders, **expected)


def test_relative_folders_become_absolute(folders: list[str], tmp_path: Path) -> None:
    relative = [os.path.relpath(f, tmp_path) for f in folders]
    line = f"cd {tmp_path} && {SCRIPT} --dry-run {shlex.join(relative)}"
    result = shell(["bash", "-c", line], CDPATH=str(ROOT))
    assert shlex.split(result.stdout) == words(folders, gpus="all")


def test_runs_docker_and_hands_back_its_status(folders: list[str], fake_docker: str, tmp_path: Path) -> None:
    result = launch(*folders, "--cpu", path=fake_docker)
    assert result.returncode == 7, result.stderr
    assert (tmp_path / "words").read_text().splitlines() == words(folders, gpus=None)


def test_a_terminal_is_passed_on(folders: list[str]) -> None:
    controller, terminal = pty.openpty()
    try:
        result = shell([str(SCRIPT), *folders, "--dry-run"], stdin=terminal)
    finally:
        os.close(controller)
        os.close(terminal)
    assert shlex.split(result.stdout) == words(folders, gpus="all", terminal="-it")


def test_docker_absent(folders: list[str], no_docker: str) -> None:
    result = launch(*folders, path=no_docker)
    assert result.returncode == 127
    assert "docker is not installed" in result.stderr


@pytest.mark.parametrize("role", range(4))
def test_a_missing_folder_is_named_with_its_role(role: int, folders: list[str]) -> None:
    folders[role] += "-gone"
    result = launch(*folders, "--dry-run")
    assert result.returncode == 2
    assert ["TXT_DB", "IMG_DB", "OUTPUT", "PRETRAIN"][role] in result.stderr
    assert folders[role] in result.stderr
    assert result.stdout == ""


def test_other_mistakes(folders: list[str], tmp_path: Path) -> None:
    comma = tmp_path / "a,b"
    comma.mkdir()
    for arguments, said in [
        ([], "got 0"),
        (folders[:3], "got 3"),
        ([*folders, folders[0]], "got 5"),
        ([*folders, "--gpu"], "no option --gpu"),
        ([*folders, "--image"], "--image needs a name"),
        ([str(comma), *folders[1:]], "comma"),
    ]:
        result = launch(*arguments)
        assert result.returncode == 2
        assert said in result.stderr
        assert result.stderr.count("\n") == 1


def test_help() -> None:
    result = launch("--help")
    assert result.returncode == 0
    assert all(word in result.stdout for word in ("TXT_DB IMG_DB OUTPUT PRETRAIN", "--cpu", "--dry-run", "--image"))


@pytest.mark.parametrize("name", SHELLS)
def test_sourced_it_leaves_the_shell_as_it_was(name: str, folders: list[str]) -> None:
    good = shlex.join([*folders, "--dry-run"])
    lines = f"""
        before=$(set +o)
        source {shlex.quote(str(SCRIPT))} {good}
        echo "status $?"
        source {shlex.quote(str(SCRIPT))} /nowhere
        echo "status $?"
        [ "$before" = "$(set +o)" ] && echo same options
        [ -z "${{image-}}${{folders-}}" ] && echo no variables
    """
    result = shell([name, "-c", lines])
    first, *rest = result.stdout.splitlines()
    assert shlex.split(first) == words(folders, gpus="all")
    assert rest == ["status 0", "status 2", "same options", "no variables"]


@pytest.mark.parametrize("options", ["-e", "-u", "-eu -o pipefail", "-f"])
def test_sourced_under_the_users_options(options: str, folders: list[str]) -> None:
    line = f"set {options}; source {shlex.quote(str(SCRIPT))} {shlex.join(folders)} --cpu --dry-run; echo done"
    result = shell(["bash", "-c", line])
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "done"


def test_the_body_is_one_function_called_in_the_last_line() -> None:
    lines = [line for line in SCRIPT.read_text().splitlines() if line and not line.startswith(("#", " "))]
    assert [lines[0], lines[-1]] == ["launch_container() (", 'launch_container "$@"']
    assert lines[-2] == ")"
