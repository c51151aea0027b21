"""launch_container.sh, run and sourced by real shells; docker is replaced only where it would be started."""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "launch_container.sh"
SHELLS = ("bash", "zsh")
"""Both are needed, not merely tried: `make system` installs them."""

SOURCED = 'source "$0" "$@"'
WAYS: dict[str, list[str]] = {
    "run": [],
    "bash": ["bash"],
    "bash, sourced": ["bash", "-c", SOURCED],
    "zsh, sourced": ["zsh", "-f", "-c", SOURCED],
}
"""What stands before the script and its arguments."""

ENGINE = {
    "runtime": '{"Runtimes":{"io.containerd.runc.v2":{"path":"runc"},"nvidia":{"path":"nvidia-container-runtime"}}}',
    "devices": '{"Runtimes":{"runc":{}},"DiscoveredDevices":[{"Source":"cdi","ID":"nvidia.com/gpu=all"}]}',
    "rootless": '{"Runtimes":{"runc":{},"nvidia":{}},"SecurityOptions":["name=seccomp","name=rootless"]}',
    "plain": '{"Runtimes":{"runc":{"path":"runc"}},"DefaultRuntime":"runc","SecurityOptions":["name=seccomp"]}',
}
"""What `docker info` says of an engine."""


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """TXT_DB IMG_DB OUTPUT PRETRAIN, one of them with a blank and a quote in its name."""
    names = ["txt", "img", "out put's", "pretrain"]
    for name in names:
        (tmp_path / name).mkdir()
    return [str(tmp_path / name) for name in names]


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """The folder of a PATH with what the script calls, and no docker."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in (*SHELLS, "cat", "dirname", "env", "id", "sed"):
        found = shutil.which(name)
        assert found, f"the tests need {name}: make system"
        (binaries / name).symlink_to(found)
    return binaries


@pytest.fixture
def docker(tools: Path, tmp_path: Path) -> Path:
    """`tools` with a docker whose engine is $ENGINE, whose only image is $HAS, and whose `run` writes down its words
    and ends with status 7."""
    (tools / "docker").write_text(
        f"""#!/bin/sh
        case $1 in
            info) [ -n "$ENGINE" ] || {{ echo 'Cannot connect to the Docker daemon' >&2; exit 1; }}; echo "$ENGINE" ;;
            image) [ "$3" = "$HAS" ] ;;
            *) printf '%s\\n' docker "$@" > '{tmp_path}/words'; exit 7 ;;
        esac"""
    )
    (tools / "docker").chmod(0o755)
    return tools


def start(
    command: list[str], *, path: Path | None = None, stdin: int = subprocess.DEVNULL, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    env = {**kept, **environment} | ({"PATH": str(path)} if path else {})
    return subprocess.run(command, env=env, stdin=stdin, capture_output=True, text=True, timeout=60)


def launch(*arguments: str, way: str = "run", **environment: Any) -> subprocess.CompletedProcess[str]:
    return start([*WAYS[way], str(SCRIPT), *arguments], **environment)


def words(
    folders: list[str],
    *,
    gpus: str | None = "all",
    image: str = "crossmodal",
    terminal: str = "-i",
    user: str = f"{os.getuid()}:{os.getgid()}",
) -> list[str]:
    """The command that is expected, word for word."""
    txt, img, output, pretrain = folders
    devices = []
    if gpus is not None:
        devices = ["--gpus", "all" if gpus == "all" else f'"device={gpus}"', "-e", f"NVIDIA_VISIBLE_DEVICES={gpus}"]
    mounts = [
        f"src={ROOT},dst=/src,type=bind",
        f"src={output},dst=/storage,type=bind",
        f"src={pretrain},dst=/pretrain,type=bind,readonly",
        f"src={txt},dst=/txt,type=bind,readonly",
        f"src={img},dst=/img,type=bind,readonly",
    ]
    mounted = [word for mount in mounts for word in ("--mount", mount)]
    caller = ["--user", user, "-e", "HOME=/tmp"]
    return ["docker", "run", *devices, "--ipc=host", "--rm", terminal, *caller, *mounted, "-w", "/src", image]


@pytest.mark.parametrize("way", WAYS)
def test_dry_run_needs_neither_docker_nor_a_gpu(way: str, folders: list[str], tools: Path) -> None:
    result = launch("--dry-run", *folders, way=way, path=tools)
    assert (result.returncode, result.stderr) == (0, "")
    assert shlex.split(result.stdout) == words(folders)


@pytest.mark.parametrize("way", WAYS)
def test_dry_run_to_the_letter(way: str, tmp_path: Path) -> None:
    for name in "tiop":
        (tmp_path / name).mkdir()
    line = f"cd {tmp_path} && {shlex.join([*WAYS[way], str(SCRIPT)])} t i o p --dry-run"
    result = start(["bash", "-c", line], CUDA_VISIBLE_DEVICES="0,2", CDPATH=str(ROOT))
    assert result.stdout == (
        "docker run --gpus '\"device=0,2\"' -e NVIDIA_VISIBLE_DEVICES=0,2 --ipc=host --rm -i"
        f" --user {os.getuid()}:{os.getgid()} -e HOME=/tmp --mount src={ROOT},dst=/src,type=bind"
        f" --mount src={tmp_path}/o,dst=/storage,type=bind --mount src={tmp_path}/p,dst=/pretrain,type=bind,readonly"
        f" --mount src={tmp_path}/t,dst=/txt,type=bind,readonly --mount src={tmp_path}/i,dst=/img,type=bind,readonly"
        " -w /src crossmodal\n"
    )


@pytest.mark.parametrize("name", SHELLS)
def test_sourced_as_the_readme_says(name: str, folders: list[str]) -> None:
    line = f"cd {shlex.quote(str(ROOT))} && source launch_container.sh {shlex.join(folders)} --dry-run"
    assert shlex.split(start([name, "-c", line]).stdout) == words(folders)


@pytest.mark.parametrize("way", ["bash, sourced", "zsh, sourced"])
@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ([], {}, {}),
        ([], {"CUDA_VISIBLE_DEVICES": "0,2"}, {"gpus": "0,2"}),
        ([], {"CUDA_VISIBLE_DEVICES": "GPU-8c1f"}, {"gpus": "GPU-8c1f"}),
        ([], {"CUDA_VISIBLE_DEVICES": ""}, {"gpus": None}),
        ([], {"CUDA_VISIBLE_DEVICES": "-1"}, {"gpus": None}),
        (["--cpu"], {"CUDA_VISIBLE_DEVICES": "0"}, {"gpus": None}),
        (["--image", "my/image:1"], {}, {"image": "my/image:1"}),
        (["--image=other", "--cpu"], {}, {"gpus": None, "image": "other"}),
    ],
)
def test_options_stand_anywhere(
    options: list[str], environment: dict[str, str], expected: dict[str, Any], way: str, folders: list[str]
) -> None:
    for at in range(5):
        result = launch(*folders[:at], *options, *folders[at:], "--dry-run", way=way, **environment)
        assert result.returncode == 0, result.stderr
        assert shlex.split(result.stdout) == words(folders, **expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("engine", "options", "expected"),
    [
        ("runtime", [], {}),
        ("devices", [], {}),
        ("plain", ["--cpu"], {"gpus": None}),
        ("rootless", [], {"user": "0:0"}),
    ],
)
def test_runs_docker_and_hands_back_its_status(
    engine: str,
    options: list[str],
    expected: dict[str, Any],
    way: str,
    folders: list[str],
    docker: Path,
    tmp_path: Path,
) -> None:
    result = launch(*folders, *options, way=way, path=docker, ENGINE=ENGINE[engine], HAS="crossmodal")
    assert (result.returncode, result.stderr) == (7, "")
    assert (tmp_path / "words").read_text().splitlines() == words(folders, **expected)


def test_a_terminal_is_passed_on(folders: list[str]) -> None:
    controller, terminal = pty.openpty()
    try:
        result = launch(*folders, "--dry-run", stdin=terminal)
    finally:
        os.close(controller)
        os.close(terminal)
    assert shlex.split(result.stdout) == words(folders, terminal="-it")


@pytest.mark.parametrize("way", WAYS)
def test_docker_absent(way: str, folders: list[str], tools: Path) -> None:
    result = launch(*folders, way=way, path=tools)
    assert result.returncode == 127
    assert "docker is not installed" in result.stderr


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("engine", "image", "said"),
    [
        ("", "crossmodal", "Cannot connect to the Docker daemon\nlaunch_container.sh: docker's engine does not answer"),
        (
            ENGINE["plain"],
            "crossmodal",
            "no NVIDIA runtime; install the NVIDIA Container Toolkit, or use no GPU: --cpu",
        ),
        (ENGINE["runtime"], "other", f"no image crossmodal; build it in {ROOT} with: docker build -t crossmodal ."),
    ],
    ids=["engine", "gpus", "image"],
)
def test_what_docker_lacks(
    engine: str, image: str, said: str, way: str, folders: list[str], docker: Path, tmp_path: Path
) -> None:
    result = launch(*folders, way=way, path=docker, ENGINE=engine, HAS=image)
    assert result.returncode == 125
    assert said in result.stderr
    assert not (tmp_path / "words").exists()


def test_the_older_nvidia_hook_is_enough(folders: list[str], docker: Path) -> None:
    (docker / "nvidia-container-runtime-hook").symlink_to(docker / "env")
    assert launch(*folders, path=docker, ENGINE=ENGINE["plain"], HAS="crossmodal").returncode == 7


def test_another_image_may_still_have_to_be_fetched(folders: list[str], docker: Path) -> None:
    result = launch(*folders, "--image", "my/image", path=docker, ENGINE=ENGINE["runtime"], HAS="")
    assert result.returncode == 7


@pytest.mark.parametrize("role", range(4))
def test_a_missing_folder_is_named_with_its_role(role: int, folders: list[str]) -> None:
    folders[role] += "-gone"
    for way in WAYS:
        result = launch(*folders, "--dry-run", way=way)
        assert result.returncode == 2
        assert ["TXT_DB", "IMG_DB", "OUTPUT", "PRETRAIN"][role] in result.stderr
        assert folders[role] in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize("way", WAYS)
def test_other_mistakes(way: str, folders: list[str], tmp_path: Path) -> None:
    comma = tmp_path / "a,b"
    comma.mkdir()
    for arguments, said in [
        ([], "got 0"),
        (folders[:3], "got 3"),
        ([*folders, folders[0]], "got 5"),
        ([*folders, "--gpu"], "no option --gpu"),
        ([*folders, "--image"], "--image needs a name"),
        ([*folders, "--image="], "--image needs a name"),
        ([str(comma), *folders[1:]], "comma"),
    ]:
        result = launch(*arguments, way=way)
        assert result.returncode == 2
        assert said in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("way", WAYS)
def test_help(way: str) -> None:
    result = launch("--help", way=way)
    assert result.returncode == 0
    assert all(word in result.stdout for word in ("TXT_DB IMG_DB OUTPUT PRETRAIN", "--cpu", "--dry-run", "--image"))


@pytest.mark.parametrize("name", SHELLS)
def test_sourced_it_leaves_the_shell_as_it_was(name: str, folders: list[str], docker: Path) -> None:
    script, good, real = shlex.quote(str(SCRIPT)), shlex.join([*folders, "--dry-run"]), shlex.join(folders)
    lines = f"""
        trap 'echo the shell itself ends' EXIT
        before=$(set +o)
        source {script} {good}
        echo "status $?"
        source {script} /nowhere
        echo "status $?"
        ENGINE= source {script} {real}
        echo "status $?"
        [ "$before" = "$(set +o)" ] && echo same options
        [ -z "${{image-}}${{folders-}}${{engine-}}${{user-}}" ] && echo no variables
    """
    result = start([name, "-c", lines], path=docker, HAS="crossmodal", ENGINE="")
    first, *rest = result.stdout.splitlines()
    assert shlex.split(first) == words(folders)
    assert rest == ["status 0", "status 2", "status 125", "same options", "no variables", "the shell itself ends"]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *[("bash", f"set {options}") for options in ("-e", "-u", "-eu -o pipefail", "-f", "-o posix")],
        ("bash", "shopt -s expand_aliases; alias cat=false sed=false id=false dirname=false"),
        *[
            ("zsh", f"setopt {options}")
            for options in ("errexit nounset", "ksharrays shwordsplit", "noglob", "globsubst")
        ],
        ("zsh", "emulate sh"),
        ("zsh", "alias cat=false sed=false id=false dirname=false"),
    ],
)
def test_sourced_under_the_users_settings(name: str, setting: str, folders: list[str]) -> None:
    line = f"{setting}\n. {shlex.quote(str(SCRIPT))} {shlex.join(folders)} --cpu --dry-run\necho done"
    result = start([name, "-c", line])
    assert result.returncode == 0, result.stderr
    first, last = result.stdout.splitlines()
    assert shlex.split(first) == words(folders, gpus=None)
    assert last == "done"


def test_the_body_is_one_function_called_in_the_last_line() -> None:
    lines = [line for line in SCRIPT.read_text().splitlines() if line and not line.startswith(("#", " "))]
    assert [lines[0], lines[-1]] == ["launch_container() (", 'launch_container "$@"']
    assert lines[-2] == ")"
