"""`crossmodal doctor` in processes of its own on a healthy machine, and in this one where one thing is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crossmodal.doctor import NOTE, OK, PROBLEM, Finding, Launcher, distributed, folder, launch, launcher, runs_on
from crossmodal.model import fused

from .commands import command

DOCTOR = [sys.executable, "-m", "crossmodal.cli", "doctor"]
Found = dict[str, dict[str, str]]
Doctor = Callable[..., Found]
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run(command: list[str], cwd: Path, packages: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    """The command, with the packages of a folder before those that are installed."""
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHED and not k.startswith("HOROVOD_")}
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done


def findings(code: int, printed: str) -> Found:
    """The findings by subject, of one subject the last."""
    told: dict[str, Any] = json.loads(printed)
    assert told["healthy"] == (code == 0)
    assert told["healthy"] == all(finding["level"] != PROBLEM for finding in told["findings"])
    return {finding["subject"]: finding for finding in told["findings"]}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose packages come before those that are installed; it has a horovod that is imported at once."""
    folder = tmp_path / "packages"
    horovod(folder, "\n".join(f"def {name}_built(): return {name == 'gloo'}" for name in ("gloo", "nccl", "mpi")))
    for name in (*LAUNCHED, *(name for name in os.environ if name.startswith("HOROVOD_"))):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("horovod", "apex", "torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(folder)
    fused.probe.cache_clear()
    yield folder
    fused.probe.cache_clear()


def horovod(packages: Path, program: str) -> Path:
    """The package, whose part for torch is `program`."""
    write(packages / "horovod" / "__init__.py", "__version__ = '0.28.1'")
    write(packages / "horovod" / "torch" / "__init__.py", program)
    return packages / "horovod"


@pytest.fixture
def doctor(packages: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """What ``crossmodal doctor words...`` finds in this process; it exits with `code`."""

    def examined(*words: object, code: int = 1) -> Found:
        assert command("doctor", "--json", *words) == code
        return findings(code, capsys.readouterr().out)

    return examined


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def only_problem(found: dict[str, dict[str, str]], subject: str) -> str:
    assert [s for s, finding in found.items() if finding["level"] == PROBLEM] == [subject]
    return f"{found[subject]['found']}; {found[subject]['advice']}"


# --- a whole machine ---------------------------------------------------------------------------------------------


def test_a_healthy_machine(tiny_world: Path, tmp_path: Path) -> None:
    words = [tiny_world / "texts" / "val.db", tiny_world / "regions" / "val", "--output", tmp_path / "new" / "run"]
    done = run([*DOCTOR, *map(str, words)], tmp_path)
    assert done.returncode == 0, done.stdout
    *lines, last = done.stdout.splitlines()
    assert last == "healthy"
    assert {line.split()[0] for line in lines} <= {OK, NOTE}
    stated = dict(line[9:].split(": ", 1) for line in lines)
    assert stated[str(tiny_world / "texts" / "val.db")] == "24 captions of 8 images"
    assert stated[str(tiny_world / "regions" / "val" / "feat_th0.2_max100_min10")] == "regions of 8 images"
    assert stated["launcher"] == "one process"
    assert "numpy" in stated["packages"] and "torch 2." in stated["packages"]
    assert stated["output"].startswith(f"{tmp_path / 'new' / 'run'}, ")
    assert not list(tmp_path.iterdir())


def test_in_a_folder_that_cannot_be_written() -> None:
    """/proc takes no file from anybody; and nothing but the path of this Python is known."""
    bare: dict[str, Any] = {"cwd": "/proc", "env": {}, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(DOCTOR, **bare)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nnote     output: /proc cannot be written to (" in done.stdout
    asked = subprocess.run([*DOCTOR, "--output", "runs"], **bare)
    assert (asked.returncode, asked.stderr) == (1, "")
    assert "\nPROBLEM  output: /proc/runs cannot be written to (" in asked.stdout
    assert asked.stdout.endswith("\n1 problem\n")


@pytest.mark.dist
def test_under_torchrun_one_rank_speaks(tmp_path: Path) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run([sys.executable, "-m", *torchrun, "-m", "crossmodal.cli", "doctor"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("launcher: ") == 1
    assert "launcher: torchrun, rank 0 of 2" in done.stdout


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    done = run(DOCTOR, tmp_path, HOROVOD_RANK="1", HOROVOD_SIZE="2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- one thing is broken -----------------------------------------------------------------------------------------


def test_damaged_databases(doctor: Doctor, tiny_world: Path, tmp_path: Path) -> None:
    images = tiny_world / "regions" / "val" / "feat_th0.2_max100_min10"
    for name in ("cut", "empty", "html"):
        write(tmp_path / name / "meta.json", "{}")
    whole = (images / "data.mdb").read_bytes()
    (tmp_path / "cut" / "data.mdb").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut" / "meta.json").unlink()
    write(tmp_path / "html" / "data.mdb", "<html>404 Not Found</html>" * 1000)
    (tmp_path / "html" / "meta.json").unlink()
    words = [tmp_path / "cut", tmp_path / "empty", tmp_path / "html", tmp_path / "none", images]
    found = doctor(*words)
    cut = found[str(tmp_path / "cut")]
    assert cut["level"] == PROBLEM and f"{tmp_path / 'cut' / 'data.mdb'} is damaged (it is cut short" in cut["found"]
    assert "is not a whole text database: id2len.json" in found[str(tmp_path / "empty")]["found"]
    assert "cannot be opened as LMDB" in found[str(tmp_path / "html")]["found"]
    assert "does not exist" in found[str(tmp_path / "none")]["found"]
    assert found[str(images)]["level"] == OK


def test_a_database_whose_name_is_no_text(tmp_path: Path) -> None:
    done = subprocess.run([*DOCTOR, b"\xff"], cwd=tmp_path, capture_output=True, timeout=300)
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"PROBLEM  \\udcff: \\udcff does not exist" in done.stdout


def test_a_folder_of_databases_one_of_which_is_damaged(doctor: Doctor, tiny_world: Path, tmp_path: Path) -> None:
    for split in ("val", "test"):
        for file in (tiny_world / "texts" / f"{split}.db").iterdir():
            target = tmp_path / "texts" / f"{split}.db" / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    write(tmp_path / "texts" / "val.db" / "img2txts.json", "{}")
    found = doctor(tmp_path / "texts")
    assert "are not listed under their image" in only_problem(found, str(tmp_path / "texts" / "val.db"))
    assert found[str(tmp_path / "texts" / "test.db")]["level"] == OK


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise ImportError('undefined symbol: _ZN3c10')", "(ImportError: undefined symbol: _ZN3c10)"),
        ("import os; os.abort()", "ended the process with signal 6"),
        ("print('Extension horovod.torch has not been built')", "has no attribute 'gloo_built'"),
    ],
)
def test_a_broken_horovod(doctor: Doctor, packages: Path, program: str, why: str) -> None:
    horovod(packages, program)
    said = only_problem(doctor(), "horovod")
    assert "installed, but cannot be imported" in said and why in said and "scripts/build_horovod.sh" in said


def test_a_horovod_of_another_torch(doctor: Doctor, packages: Path) -> None:
    write(packages / "horovod" / "metadata.json", json.dumps({"pytorch": "1.13.1"}))
    assert "0.28.1 with gloo, built for torch 1.13.1, not " in only_problem(doctor(), "horovod")


def test_an_apex_that_is_not_nvidias(doctor: Doctor, packages: Path) -> None:
    write(packages / "apex" / "__init__.py", "from pyramid_mailer.interfaces import IMailer")
    write(packages / "apex" / "views.py", "")
    assert "`pip uninstall apex`" in only_problem(doctor(), "apex")


def test_a_torchvision_that_cannot_be_imported_is_a_note(doctor: Doctor, packages: Path) -> None:
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    write(packages / "torchvision" / "__init__.py", broken)
    found = doctor(code=0)
    assert found["torchvision"]["level"] == NOTE
    assert "torchvision::nms does not exist" in found["torchvision"]["found"]


def test_an_old_torch(doctor: Doctor, packages: Path) -> None:
    stated = "Metadata-Version: 2.1\nName: torch\nVersion: 2.5.1+cpu\n"
    write(packages / "torch-2.5.1+cpu.dist-info" / "METADATA", stated)
    assert only_problem(doctor(), "torch") == (
        "2.5.1+cpu is too old; crossmodal needs 2.6 or newer; `pip install 'torch>=2.6'`"
    )


def test_a_torch_that_cannot_be_imported(tiny_world: Path, tmp_path: Path) -> None:
    write(
        tmp_path / "packages" / "torch" / "__init__.py", "raise OSError('libtorch_cpu.so: cannot open shared object')"
    )
    words = ["--json", str(tiny_world / "texts" / "val.db")]
    done = run([*DOCTOR, *words], tmp_path, packages=tmp_path / "packages")
    found = findings(done.returncode, done.stdout)
    assert done.returncode == 1
    assert "cannot be imported (libtorch_cpu.so" in found["torch"]["found"]
    assert "horovod" not in found


# --- parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launcher()),
        ({"WORLD_SIZE": "4"}, Launcher()),
        ({"RANK": "x", "WORLD_SIZE": "4"}, Launcher()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, Launcher("torchrun", 3, 4, 2)),
        ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2", "WORLD_SIZE": "9", "RANK": "8"}, Launcher("horovodrun", 0, 2, 1)),
    ],
)
def test_launchers(environment: dict[str, str], expected: Launcher) -> None:
    assert launcher(environment) == expected


def test_an_environment_that_torchrun_did_not_make() -> None:
    (finding,) = launch(Launcher(), {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"})
    assert finding.level == PROBLEM
    assert "WORLD_SIZE is 2, but torchrun would set LOCAL_RANK, MASTER_ADDR too" in str(finding)


@pytest.mark.parametrize(
    ("kernels", "capability", "expected"),
    [
        (["sm_80", "sm_90"], (8, 6), True),
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80", "sm_90"], (7, 5), False),
        (["sm_86"], (8, 0), False),
        (["sm_80", "sm_90"], (10, 0), False),
        (["sm_80", "compute_90"], (12, 0), True),
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_100", "sm_120"], (12, 1), True),
        (["gfx90a", "gfx942"], (9, 4), True),
    ],
)
def test_which_gpus_a_build_runs_on(kernels: list[str], capability: tuple[int, int], expected: bool) -> None:
    assert runs_on(kernels, capability) == expected


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    write(tmp_path / "file", "")
    (asked,) = folder(tmp_path / "file" / "run")
    assert asked.level == PROBLEM and str(tmp_path / "file" / "run") in asked.found


def test_one_line_a_finding() -> None:
    assert str(Finding("gpu", NOTE, "none", "everything runs on the CPU")) == (
        "note     gpu: none; everything runs on the CPU"
    )
    (found,) = distributed(Launcher())
    assert str(found).startswith((f"{OK:<8} torch.distributed: ", f"{NOTE:<8} torch.distributed: "))
