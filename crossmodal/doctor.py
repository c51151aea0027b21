"""What crossmodal finds where it runs: versions, launcher, devices, optional libraries, folders and databases.

Nothing is joined, changed or left behind, and nothing raises: whatever goes wrong is a finding.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from platform import machine, python_version, system
from typing import Any

from crossmodal import __version__
from crossmodal.disk import require_room
from crossmodal.errors import CrossmodalError

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"

_RANKS = {
    "horovodrun": ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_SIZE"),
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
}
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = 120  # seconds for the import of a library
_SHARED = 1 << 30  # bytes of shared memory: the batches that the workers of a loader hold ready may need as much
_ROOM = 10 << 30  # bytes on a disk: a few checkpoints of the base size, each over 1 GB with the optimizer's state
_HOROVOD = """import horovod, horovod.torch as hvd
print(json.dumps([horovod.__version__, hvd.gloo_built(), bool(hvd.nccl_built()), hvd.mpi_built()]))"""


@dataclass(frozen=True)
class Finding:
    """How one thing stands (`level`: OK, NOTE or PROBLEM), what was found, and what to do about it."""

    subject: str
    level: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.subject}: {self.found}" + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Launcher:
    """What started this process, and as which of how many; `local_size` of them on this machine."""

    name: str = "one process"
    rank: int = 0
    size: int = 1
    local_size: int = 1


def launcher(environment: Mapping[str, str] = os.environ) -> Launcher:
    """The launcher that the environment tells of."""
    for name, (rank, size, local_size) in _RANKS.items():
        numbers = [environment.get(rank, ""), environment.get(size, ""), environment.get(local_size, "1")]
        if all(number.isdecimal() for number in numbers):
            return Launcher(name, *map(int, numbers))
    return Launcher()


def examine(databases: Sequence[Path] = (), output: Path | None = None) -> list[Finding]:
    """Every finding on this process, on a folder to write to (the current one if absent) and on databases."""
    started = launcher()
    looks: dict[str, Callable[[], Iterable[Finding]]] = {
        "crossmodal": packages,
        "launcher": partial(launch, started),
        "torch": torch_imports,
    }
    findings = [found for subject, look in looks.items() for found in _findings(subject, look)]
    if not any(found.subject == "torch" for found in findings):
        looks = {
            "cpu": cpu,
            "gpu": partial(gpus, started),
            "torch.distributed": partial(distributed, started),
            "horovod": partial(horovod, started),
            "apex": apex,
            "torchvision": torchvision,
        }
        findings += [found for subject, look in looks.items() for found in _findings(subject, look)]
    findings += _findings("output", partial(folder, output))
    findings += _findings("/dev/shm", shared_memory)
    for path in databases:
        for one in [data.parent for data in sorted(path.glob("*/data.mdb"))] or [path]:
            findings += _findings(str(one), partial(database, one))
    return findings


def _findings(subject: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except CrossmodalError as error:  # says what to do
        return [Finding(subject, PROBLEM, str(error))]
    except Exception as error:
        found = f"looking at it failed with {type(error).__name__}: {_line(error)}"
        return [Finding(subject, PROBLEM, found, "see whether it is whole and may be read")]


# --- this program and what started it ----------------------------------------------------------------------------


def packages() -> Iterator[Finding]:
    """The versions of crossmodal and of what it needs, and of optional packages that are there."""
    yield Finding("crossmodal", OK, f"{__version__}, Python {python_version()}, {system()} {machine()}")
    try:
        stated = [re.match(r"([\w.-]+)>=([\d.]+)", line) for line in requires("crossmodal") or () if ";" not in line]
    except PackageNotFoundError:
        stated = []
        yield Finding("packages", NOTE, "crossmodal is imported from a folder, not installed", "`pip install -e .`")
    needed = {match[1]: match[2] for match in stated if match}
    there = {}
    for name in (*needed, "horovod", "apex", "torchvision"):
        try:
            there[name] = version(name)
        except PackageNotFoundError:
            if name in needed:
                yield Finding(name, PROBLEM, "not installed", f"`pip install '{name}>={needed[name]}'`")
    yield Finding("packages", OK, ", ".join(f"{name} {is_}" for name, is_ in there.items()))
    for name, least in needed.items():
        if name in there and _numbers(there[name]) < _numbers(least):
            found = f"{there[name]} is too old; crossmodal needs {least} or newer"
            yield Finding(name, PROBLEM, found, f"`pip install '{name}>={least}'`")


def launch(started: Launcher, environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    wrong = [name for name in _TORCHRUN if not environment.get(name, "").isdecimal() and name != "MASTER_ADDR"]
    wrong += [] if environment.get("MASTER_ADDR") else ["MASTER_ADDR"]
    if started.name != "horovodrun" and environment.get("WORLD_SIZE", "1") != "1" and wrong:
        found = f"WORLD_SIZE is {environment['WORLD_SIZE']}, but torchrun would set {', '.join(wrong)} too"
        yield Finding("launcher", PROBLEM, found, "start several processes with torchrun, or unset WORLD_SIZE")
        return
    which = f", rank {started.rank} of {started.size}" if started.size > 1 else ""
    yield Finding("launcher", OK, started.name + which)


# --- devices and what several processes speak through ------------------------------------------------------------


def torch_imports() -> Iterator[Finding]:
    try:
        import torch  # noqa: F401
    except Exception as error:
        advice = "install torch again; without it nothing else is looked at but folders and databases"
        yield Finding("torch", PROBLEM, f"cannot be imported ({_line(error)})", advice)


def cpu() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container; "max" where there is none
    if limit.is_file() and (least := limit.read_text().strip()).isdecimal():
        memory = min(memory, int(least))
    yield Finding("cpu", OK, f"{cores} cores, {torch.get_num_threads()} of them for torch, {_size(memory)} of memory")


def gpus(started: Launcher) -> Iterator[Finding]:
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable and said:  # torch is quiet where there is no driver at all
        advice = "bring the driver and this build of torch together"
        yield Finding("gpu", PROBLEM, f"torch {torch.__version__} cannot use it ({_line(said[0].message)})", advice)
    elif not usable:
        yield Finding("gpu", NOTE, f"none that torch {torch.__version__} can use", "everything runs on the CPU")
    count = torch.cuda.device_count() if usable else 0
    kernels = torch.cuda.get_arch_list() if usable else []
    for number in range(count):
        gpu = torch.cuda.get_device_properties(number)
        found = f"{gpu.name}, {_size(gpu.total_memory)}, compute capability {gpu.major}.{gpu.minor}"
        if runs_on(kernels, (gpu.major, gpu.minor)):
            yield Finding(f"gpu {number}", OK, found)
        else:
            found += f", for which torch {torch.__version__} has no kernels (it has {', '.join(kernels)})"
            yield Finding(f"gpu {number}", PROBLEM, found, "install a build of torch that has them")
    if count and started.local_size > count:
        found = f"{started.local_size} processes on this machine share {count}"
        yield Finding("gpu", PROBLEM, found, "start at most one process a GPU")


def runs_on(kernels: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a build with these kernels (``sm_80``, ``compute_90``, ...) runs on a GPU of this capability.

    A kernel runs on its own major version from its minor version on; code of ``compute_`` is compiled for any later
    GPU when it is loaded; an ``a`` behind the number means that GPU alone. AMD's names are not judged.
    """
    known = [match for kernel in kernels if (match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", kernel))]
    for kind, *numbers, only in (match.groups() for match in known):
        built = (int(numbers[0]), int(numbers[1]))
        later = built < capability and only != "a" and (kind == "compute" or built[0] == capability[0])
        if built == capability or later:
            return True
    return not known


def distributed(started: Launcher) -> Iterator[Finding]:
    import torch
    from torch import distributed as td

    gloo = td.is_available() and td.is_gloo_available()
    nccl = td.is_available() and td.is_nccl_available()
    number = ".".join(map(str, torch.cuda.nccl.version())) if nccl else ""
    found = f"{'gloo' if gloo else 'no gloo'}, {f'NCCL {number}' if nccl else 'no NCCL'}"
    needed = "NCCL" if torch.cuda.is_available() else "gloo"
    if nccl if needed == "NCCL" else gloo:
        yield Finding("torch.distributed", OK, found)
    else:
        level = PROBLEM if started.name == "torchrun" and started.size > 1 else NOTE
        yield Finding(
            "torch.distributed", level, found, f"torchrun needs {needed} here: install a build of torch with it"
        )


# --- optional libraries ------------------------------------------------------------------------------------------


def horovod(started: Launcher) -> Iterator[Finding]:
    import torch

    spec = find_spec("horovod")
    if spec is None or spec.origin is None:
        level = PROBLEM if started.name == "horovodrun" else NOTE
        yield Finding(
            "horovod", level, "not installed", "scripts/build_horovod.sh builds it; torchrun needs nothing more"
        )
        return
    again = "build it for this torch with scripts/build_horovod.sh, or `pip uninstall horovod`"
    told, why = _elsewhere(_HOROVOD)
    if told is None:
        yield Finding("horovod", PROBLEM, f"installed, but cannot be imported ({why})", again)
        return
    number, gloo, nccl, mpi = told
    has = {"gloo": gloo, "NCCL": nccl, "MPI": mpi}
    found = f"{number} with {', '.join(name for name, is_ in has.items() if is_) or 'nothing to speak through'}"
    built = _built_for(Path(spec.origin).with_name("metadata.json"))
    if built not in (None, torch.__version__):
        yield Finding("horovod", PROBLEM, f"{found}, built for torch {built}, not {torch.__version__}", again)
    elif torch.cuda.is_available() and not nccl:
        advice = (
            "gradients go through the CPU; HOROVOD_GPU_OPERATIONS=NCCL scripts/build_horovod.sh builds it with NCCL"
        )
        yield Finding("horovod", NOTE, found, advice)
    else:
        yield Finding("horovod", OK, found + (", built for this torch" if built else ""))


def _built_for(metadata: Path) -> str | None:
    """The torch that horovod was built with; None where it doesn't say."""
    built = json.loads(metadata.read_text()).get("pytorch") if metadata.is_file() else None
    return None if built is None else str(built)


def apex() -> Iterator[Finding]:
    from crossmodal.model.fused import probe

    fused = probe()
    level = OK if fused.layer_norm or fused.adam else NOTE
    yield Finding("apex", level, fused.said.removeprefix("apex: "))


def torchvision() -> Iterator[Finding]:
    """crossmodal doesn't use it, but other libraries import it where it is there."""
    if find_spec("torchvision") is not None:
        told, why = _elsewhere("import torchvision; print(json.dumps(torchvision.__version__))")
        if told is None:
            advice = (
                "it breaks libraries that look for it: `pip uninstall torchvision`, or install torch's own build of it"
            )
            yield Finding("torchvision", NOTE, f"installed, but cannot be imported ({why})", advice)


def _elsewhere(program: str) -> tuple[Any, str]:
    """The JSON that a program prints last, or None and why there is none. Native code may end its process: not ours."""
    program = f"import json, sys; sys.path[:] = {sys.path!r}\n{program}"
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return None, f"its import took more than {_PATIENCE} seconds"
    if done.returncode < 0:
        return None, f"its import ended the process with signal {-done.returncode}"
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1]), ""


# --- folders and databases ---------------------------------------------------------------------------------------


def folder(output: Path | None) -> Iterator[Finding]:
    """Whether a run could be written there. Without a folder that was asked for, nothing about it is a problem."""
    path = (output or Path()).absolute()
    there = next(at for at in (path, *path.parents) if at.exists())
    wrong, elsewhere = NOTE if output is None else PROBLEM, "write runs elsewhere with --output"
    try:
        require_room(there)
    except (CrossmodalError, OSError) as error:
        why = getattr(error, "strerror", None) or _line(error)
        yield Finding("output", wrong, f"{path} cannot be written to ({why})", elsewhere)
        return
    free = shutil.disk_usage(there).free
    if free < _ROOM:
        yield Finding("output", NOTE, f"{path}, only {_size(free)} free", f"make room for checkpoints, or {elsewhere}")
    else:
        yield Finding("output", OK, f"{path}, {_size(free)} free")


def shared_memory() -> Iterator[Finding]:
    if os.path.isdir("/dev/shm"):
        usage = shutil.disk_usage("/dev/shm")
        found = f"{_size(usage.total)}, {_size(usage.free)} free"
        if usage.free < _SHARED:
            advice = "the workers of a loader may need more: docker run --ipc=host or --shm-size=8g, or workers: 0"
            yield Finding("/dev/shm", NOTE, found, advice)
        else:
            yield Finding("/dev/shm", OK, found)


def database(path: Path) -> Iterator[Finding]:
    """What can be told without reading a text or image database whole: its structure, its indexes, its first record.

    Raises DataError where something is wrong with it.
    """
    from crossmodal.data.region_db import require_boxes
    from crossmodal.data.region_lmdb import LmdbRegions
    from crossmodal.data.regions import open_regions
    from crossmodal.data.texts import INDEXES, TextDB

    if any((path / name).is_file() for name in INDEXES):
        texts = TextDB(path)
        for caption in texts.ids[:1]:
            texts[caption]
        yield Finding(str(path), OK, f"{len(texts)} captions of {len(texts.images)} images")
        return
    regions = open_regions(path)
    if not isinstance(regions, LmdbRegions):
        yield Finding(str(path), OK, "can be opened; `crossmodal data check` reads it")
        return
    if regions.counts is not None:
        regions.lengths  # noqa: B018  read and compared with the ids
    require_boxes(regions.loader(regions.ids[0])(), f"The record of {regions.ids[0]} in {path}")
    yield Finding(str(path), OK, f"regions of {len(regions)} images")


def _numbers(text: str) -> list[int]:
    """``2.13.0+cpu`` -> [2, 13, 0]"""
    release = re.match(r"\d+(\.\d+)*", text)
    return [int(number) for number in release[0].split(".")] if release else []


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _line(error: object) -> str:
    return " ".join(str(error).split())
