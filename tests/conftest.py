"""What several tests share: a tiny corpus on disk, and a run on it."""

from __future__ import annotations

import fcntl
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from crossmodal.data.region_writer import write_region_db
from crossmodal.data.text_writer import Caption, write_text_db
from crossmodal.data.tokenizers import train_tokenizer

from .commands import command
from .host import able, left_out
from .recipes import tiny_recipe, write_recipe
from .train.runs import Job, of_two_ranks

# A first call that imports or compiles something may take long; how long is not what these tests are about.
settings.register_profile("crossmodal", deadline=None)
settings.register_profile("soak", deadline=None, max_examples=2000)
settings.load_profile("crossmodal")

COLOURS = ("red", "green", "blue", "yellow", "black", "white")
KINDS = ("dog", "cat", "car", "tree", "ball", "chair")
IMAGES = {"train": 24, "val": 8, "test": 8}
CAPTIONS = 3
WIDTH = 16
"""Numbers a region: a one-hot colour, a one-hot kind, noise."""

Thing = tuple[int, int]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the kill and fuzz loops in their long form")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--soak"):
        settings.load_profile("soak")


LEFT_OUT = pytest.StashKey[list[str]]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what this machine cannot do, as the marker `host` names it."""
    needs = {item: str(mark.args[0]) for item in items if (mark := item.get_closest_marker("host")) and mark.args}
    unable = {item: need for item, need in needs.items() if not able(need)}
    config.stash[LEFT_OUT] = list(unable.values())
    if unable:
        config.hook.pytest_deselected(items=list(unable))
        items[:] = [item for item in items if item not in unable]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes that test: another one writes the summary
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """All of them collect the same."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What was left out, and what the loops of `tests/soak` counted."""
    if needs := config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(left_out(needs))
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    for report in reports:
        for name, count in report.user_properties:
            terminalreporter.write_line(f"{name}: {count}")


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> Callable[..., int]:
    """How many kills a loop takes: ``kills(50)`` is 50 in the long form and 5 in the short one, ``kills(50, 3)`` 3."""
    return lambda long, short=5: long if request.config.getoption("--soak") else short


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``texts/<split>.db`` and ``regions/<split>`` of train, val and test; to be read only.

    40 images of 3 to 9 boxes, each with 3 captions that name two of its boxes; the same on every run.
    """
    folder = tmp_path_factory.mktemp("tiny_world")
    draw = random.Random(0)
    scenes = {split: [_scene(draw) for _ in range(count)] for split, count in IMAGES.items()}
    captions = {split: _captions(split, things, draw) for split, things in scenes.items()}
    tokenizer = train_tokenizer([c.sentence for c in captions["train"]], vocab_size=120)
    for split, things in scenes.items():
        write_text_db(captions[split], folder / "texts" / f"{split}.db", tokenizer)
        records = [(_image(split, i), _record(scene, seed=i)) for i, scene in enumerate(things)]
        write_region_db(records, folder / "regions" / split)
    return folder


@pytest.fixture
def recipe_file(tiny_world: Path, tmp_path: Path) -> Path:
    """A recipe that trains on `tiny_world`."""
    return write_recipe(tmp_path / "recipe.yaml", tiny_recipe(tiny_world))


@pytest.fixture(scope="session")
def trained(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with IAIS, to be read only."""
    folder = tmp_path_factory.mktemp("trained")
    source = write_recipe(folder / "recipe.yaml", tiny_recipe(tiny_world))
    assert command("train", "--config", source, "--output", folder / "run", "--IAIS", "singular") == 0
    return folder / "run"


@pytest.fixture(scope="session")
def two_ranks(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two ranks under torchrun, to be read only; all processes that test share one."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two_ranks"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            with Job("torchrun", write_recipe(folder / "r.yaml", of_two_ranks(tiny_world)), folder / "run") as job:
                assert job.wait() == 0, job.said
            (folder / "done").touch()
    return folder / "run"


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run's best checkpoint as a published file, and the published kind of model configuration."""
    folder = tmp_path_factory.mktemp("exported")
    assert command("export", trained / "best", "--output", folder / "model.pt") == 0
    (folder / "config.json").write_text(json.dumps(tiny_recipe(Path())["model"]["config"]))
    return folder / "model.pt", folder / "config.json"


def _image(split: str, number: int) -> str:
    return f"{split}_{number:02d}.npz"


def _scene(draw: random.Random) -> list[Thing]:
    return [(draw.randrange(len(COLOURS)), draw.randrange(len(KINDS))) for _ in range(draw.randint(3, 9))]


def _captions(split: str, scenes: list[list[Thing]], draw: random.Random) -> list[Caption]:
    captions = []
    for i, scene in enumerate(scenes):
        for n in range(CAPTIONS):
            (a, b), (c, d) = draw.sample(scene, 2)
            sentence = f"a {COLOURS[a]} {KINDS[b]} near a {COLOURS[c]} {KINDS[d]}" + " outside" * n
            captions.append(Caption(f"{split}_{i:02d}_{n}", _image(split, i), sentence))
    return captions


def _record(scene: list[Thing], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 0.1, (len(scene), WIDTH))
    for row, (colour, kind) in zip(features, scene, strict=True):
        row[colour] += 1
        row[len(COLOURS) + kind] += 1
    x1, y1 = rng.uniform(0, 0.5, (2, len(scene)))
    w, h = rng.uniform(0.1, 0.5, (2, len(scene)))
    return {
        "norm_bb": np.stack([x1, y1, x1 + w, y1 + h, w, h], axis=1).astype(np.float32),
        "features": features.astype(np.float32),
        "conf": np.sort(rng.uniform(0.3, 1, len(scene)).astype(np.float32))[::-1, None],
    }
