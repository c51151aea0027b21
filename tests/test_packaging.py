"""What is shipped: the wheel, the links at the root, and how little an import loads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = ("data", "model", "losses", "configs")
PACKAGE = ROOT / "crossmodal"


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    result = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def shipped() -> set[str]:
    """Every file of the package in this checkout, relative to its parent."""
    files = (f for f in PACKAGE.rglob("*") if f.is_file() and f.suffix != ".pyc")
    return {f.relative_to(ROOT).as_posix() for f in files}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment: crossmodal from a wheel, its dependencies from the running environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(PACKAGE, source / "crossmodal", ignore=shutil.ignore_patterns("__pycache__"))
    for name in LINKS:
        (source / name).symlink_to(os.readlink(ROOT / name))
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source]
    run(sys.executable, "-m", "pip", *build)
    (wheel,) = folder.glob("crossmodal-*.whl")

    environment = folder / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    # A folder named by a .pth file joins the path; its own .pth files (an editable crossmodal) are not read.
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n")
    return python


def test_everything_imports_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    program = """
import importlib, json, pkgutil
import crossmodal
names = [m.name for m in pkgutil.walk_packages(crossmodal.__path__, "crossmodal.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(json.dumps([crossmodal.__file__, names]))
"""
    file, names = json.loads(run(installed, "-I", "-c", program, cwd=tmp_path).splitlines()[-1])
    assert Path(file).is_relative_to(installed.parent.parent)
    modules = {name.removesuffix(".py") for name in shipped() if name.endswith(".py")}
    expected = {name.removesuffix("/__init__").replace("/", ".") for name in modules}
    assert {"crossmodal", *names} == expected


def test_the_wheel_holds_every_file_of_the_package(installed: Path) -> None:
    site = Path(run(installed, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    files = (f for f in (site / "crossmodal").rglob("*") if f.is_file() and f.suffix != ".pyc")
    assert {f.relative_to(site).as_posix() for f in files} == shipped()
    assert (site / "crossmodal/py.typed").exists()
    assert any((site / "crossmodal/configs").glob("*.yaml"))
    assert any((site / "crossmodal/evaluate/templates").iterdir())
    assert not any((site / name).exists() for name in LINKS)


def test_the_wheel_brings_the_command(installed: Path) -> None:
    assert "usage" in run(installed.parent / "crossmodal", "--help").lower()


@pytest.mark.parametrize("name", LINKS)
def test_root_links_are_relative_and_resolve(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert os.readlink(link) == f"crossmodal/{name}"
    assert link.resolve() == PACKAGE / name
    assert link.is_dir()


def loaded_by(statement: str) -> set[str]:
    program = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    return set(json.loads(run(sys.executable, "-c", program)))


def test_import_crossmodal_loads_only_the_standard_library() -> None:
    added = loaded_by("import crossmodal") - loaded_by("pass")
    outside = {name.split(".")[0] for name in added} - sys.stdlib_module_names
    assert outside == {"crossmodal"}


@pytest.mark.parametrize("module", ["crossmodal.losses", "crossmodal.data.batches"])
def test_lower_shelves_load_no_higher_one(module: str) -> None:
    shelves = {name.split(".")[1] for name in loaded_by(f"import {module}") if name.startswith("crossmodal.")}
    assert shelves - {"errors"} == {module.split(".")[1]}


def test_the_command_line_loads_no_torch() -> None:
    assert not {"torch", "numpy", "transformers"} & loaded_by("import crossmodal.cli")


def through_a_link(paths: str) -> list[str]:
    """The lines of a listing whose path starts, below the root, with one of the links."""
    relative = [line.strip().removeprefix(f"{ROOT}/").removeprefix("./") for line in paths.splitlines()]
    return [line for line in relative if line.split("/")[0] in LINKS]


def test_ruff_does_not_walk_the_links() -> None:
    listing = run(sys.executable, "-m", "ruff", "check", "--show-files", ".")
    assert f"{PACKAGE}/data/batches.py" in listing
    assert through_a_link(listing) == []


def test_pytest_does_not_walk_the_links(tmp_path: Path) -> None:
    # A checkout in small, whose shelves hold tests: found in place, and not once more through the links.
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in LINKS:
        for folder in ("crossmodal", "tests"):
            (tmp_path / folder / name).mkdir(parents=True)
            (tmp_path / folder / name / f"test_{folder}_{name}.py").write_text("def test_it(): pass\n")
        (tmp_path / name).symlink_to(f"crossmodal/{name}")
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    assert {line.split("/")[0] for line in run(*command, cwd=tmp_path).splitlines() if "::" in line} == {"tests"}
    everything = [line for line in run(*command, ".", cwd=tmp_path).splitlines() if "::" in line]
    assert len(everything) == 2 * len(LINKS)
    assert through_a_link("\n".join(everything)) == []


def test_mypy_does_not_walk_the_links(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in LINKS:
        (tmp_path / "crossmodal" / name).mkdir(parents=True)
        (tmp_path / "crossmodal" / name / f"{name}_module.py").write_text("wrong: int = 'text'\n")
        (tmp_path / name).symlink_to(f"crossmodal/{name}")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "."]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert len(result.stdout.splitlines()) == len(LINKS), result.stdout + result.stderr
    assert through_a_link(result.stdout) == []
