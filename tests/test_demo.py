"""The main job, shortened: everything runs and what it writes holds together."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from crossmodal.cli import run
from crossmodal.demo import ARMS, EDITS
from crossmodal.evaluate.recall import NAMES


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    assert run(["demo", "--quick", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def aladin(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aladin") / "run"
    words = ["demo", "--system", "aladin", "--quick", "--uniter", str(demo), "--output", str(folder)]
    assert run(words) == 0
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "run"
    assert run(["demo", "--system", "clip", "--quick", "--output", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_demo_json(demo: Path) -> None:
    summary = json.loads((demo / "demo.json").read_text())
    assert summary["arms"].keys() == set(ARMS) and summary["seconds"] > 0
    assert summary["chance"]["txt_r1"] == summary["chance"]["img_r1"] == pytest.approx(1 / 12)
    for arm in summary["arms"].values():
        shares = [arm[name] for name in NAMES] + [arm["edits"][kind] for kind in EDITS]
        assert all(0 <= share <= 1 for share in shares)
        assert arm["relation_distance"] > 0


@pytest.mark.slow
def test_arms_differ_by_the_regulariser_alone(demo: Path) -> None:
    import yaml

    iais, plain = (yaml.safe_load((demo / arm / "recipe.yaml").read_text()) for arm in ARMS)
    assert [loss["use"] for s in iais["streams"] for loss in s["losses"]] == ["margin_ranking", "iais"] * 2
    for stream in iais["streams"]:
        stream["losses"] = [loss for loss in stream["losses"] if loss["use"] != "iais"]
    assert iais == plain


@pytest.mark.slow
def test_report_is_whole_and_self_contained(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert page.count("data:image/") >= 10
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for heading in ("Results", "Figures", "Example queries", "Where words look"):
        assert heading in page


@pytest.mark.slow
def test_an_output_folder_in_use_is_refused(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (demo / "demo.json").read_bytes()
    assert run(["demo", "--quick", "--output", str(demo)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (demo / "demo.json").read_bytes() == before


@pytest.mark.slow
def test_ways_of_searching_and_their_cost(aladin: Path) -> None:
    summary = json.loads((aladin / "demo.json").read_text())
    assert summary["steps"]["contrast"] == summary["steps"]["align"] + summary["steps"]["distil"]
    ways = summary["ways"]
    pairs = {name: way["pairs"] for name, way in ways.items()}
    captions, images = 60, 12
    cascade = pairs.pop("matching, then alignment on 20")
    assert set(pairs.values()) == {captions * images} and images * 10 <= cascade <= captions * images
    assert pairs.keys() == {"matching, distilled", "alignment", "matching, by InfoNCE", "UNITER"}
    assert all(0 <= way[name] <= 1 for way in ways.values() for name in NAMES)
    assert ways["UNITER"]["ms_a_query"] > ways["alignment"]["ms_a_query"] > 0
    mean = {name: (way["txt_r1"] + way["img_r1"]) / 2 for name, way in ways.items()}
    assert summary["distilled_share"] == pytest.approx(mean["matching, distilled"] / mean["alignment"])


@pytest.mark.slow
def test_the_control_starts_as_the_alignment_head_did(aladin: Path) -> None:
    import yaml

    align, contrast = (yaml.safe_load((aladin / run / "recipe.yaml").read_text()) for run in ("align", "contrast"))
    assert align["seed"] == contrast["seed"] and align["model"] == contrast["model"]
    assert {k: v for k, v in align.items() if contrast[k] != v}.keys() <= {"name", "steps", "streams"}


@pytest.mark.slow
def test_aladins_report(aladin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (aladin / "report.html").read_text()
    assert "Effectiveness and cost" in page and "Example queries" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert (aladin / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert run(["demo", "--uniter", str(aladin)]) == 2
    assert "add --system aladin" in capsys.readouterr().err


@pytest.mark.slow
def test_before_and_after_wrong_captions(clip: Path) -> None:
    summary = json.loads((clip / "demo.json").read_text())
    assert summary["steps"]["ce_clip"] == summary["steps"]["control"]
    states = summary["states"]
    assert states.keys() == {"clip", "control", "ce_clip"}
    for state in states.values():
        assert state["edits"].keys() == set(EDITS)
        assert all(0 <= share <= 1 for share in [*state["edits"].values(), *(state[name] for name in NAMES)])
        assert state["edits_mean"] == pytest.approx(sum(state["edits"].values()) / 4)
    mean = {name: (state["txt_r1"] + state["img_r1"]) / 2 for name, state in states.items()}
    assert summary["r1_gained"] == pytest.approx(mean["ce_clip"] - mean["control"])
    assert summary["edits_gained"] == pytest.approx(states["ce_clip"]["edits_mean"] - states["control"]["edits_mean"])


@pytest.mark.slow
def test_arms_differ_by_the_wrong_captions_alone(clip: Path) -> None:
    import yaml

    ours, control = (yaml.safe_load((clip / arm / "recipe.yaml").read_text()) for arm in ("ce_clip", "control"))
    assert {k for k, v in ours.items() if control[k] != v} == {"name", "streams"}
    (stream,), (plain,) = ours["streams"], control["streams"]
    assert [loss["use"] for loss in stream["losses"]] == ["ce_clip"]
    assert [loss["use"] for loss in plain["losses"]] == ["clip_info_nce"]
    assert {**stream["data"], "draw": "matched"} == plain["data"]


@pytest.mark.slow
def test_clips_report(clip: Path) -> None:
    page = (clip / "report.html").read_text()
    assert "Before and after" in page and "Example queries" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert (clip / "edits.png").read_bytes().startswith(b"\x89PNG")
