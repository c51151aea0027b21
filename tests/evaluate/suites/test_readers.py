"""The published layouts, generated: what is asked, and what a judge that is told the scores gets."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossmodal.errors import ConfigError, DataError
from crossmodal.evaluate.suites import names, open_suite
from crossmodal.evaluate.suites.items import Picture, Questions
from crossmodal.evaluate.suites.metrics import Share

from .worlds import Told, photos, write_json


def best(*true: str) -> Told:
    """These captions match every picture."""
    return Told(lambda caption, picture: float(caption in true))


def test_the_registry() -> None:
    assert {"aro_relation", "aro_coco_order", "sugarcrepe", "sugarcrepe_pp", "valse", "zero_shot"} <= set(names())
    with pytest.raises(ConfigError, match="there is no suite 'sugarcrep'; did you mean sugarcrepe"):
        open_suite("sugarcrep", Path("."))
    with pytest.raises(ConfigError, match="the suite sugarcrepe has no option 'split'"):
        open_suite("sugarcrepe", Path("."), split="test")
    with pytest.raises(DataError, match="the files of sugarcrepe are not at nowhere"):
        open_suite("sugarcrepe", Path("nowhere"))


def crepe(image: str, *captions: str) -> dict[str, str]:
    return dict(zip(("filename", "caption", "negative_caption"), (image, *captions), strict=True))


def test_sugarcrepe(tmp_path: Path) -> None:
    write_json(tmp_path / "swap_obj.json", {"3": crepe("1.jpg", "a", "b"), "7": crepe("1.jpg", "a", "c")})
    write_json(tmp_path / "swap_att.json", {"0": crepe("2.jpg", "d", "e"), "1": crepe("2.jpg", "x", "x")})
    test = open_suite("sugarcrepe", tmp_path)
    assert isinstance(test, Questions)
    assert test.size == 4 and test.pictures == [Picture("1.jpg"), Picture("2.jpg")]
    judge = best("a", "e")
    rows = test.ask(judge).rows
    assert judge.asked == [6]  # "a" with 1.jpg and "x" with 2.jpg once
    assert rows == {
        "swap_obj": Share(1.0, 2, 0),
        "swap_att": Share(0.0, 2, 1),
        "swap": Share(0.5, 4, 1),
    }
    kept = test.without([Picture("1.jpg")])
    assert [q.key for q in kept.questions] == ["swap_att/0", "swap_att/1"]
    assert open_suite("sugarcrepe", tmp_path / "swap_obj.json").size == 2
    record = test.ask(judge).records[0]
    assert record.pop("scores") == [[1.0, 0.0]]
    assert record == {"key": "swap_obj/3", "category": "swap_obj", "images": ["1.jpg"], "captions": ["a", "b"]}


def test_sugarcrepe_pp_asks_for_both_true_captions(tmp_path: Path) -> None:
    rows = [
        {"id": i, **crepe("1.jpg", a, c), "caption2": b}
        for i, (a, b, c) in enumerate([("a", "b", "c"), ("a", "d", "c")])
    ]
    write_json(tmp_path / "replace_att.json", rows)
    found = open_suite("sugarcrepe_pp", tmp_path).ask(best("a", "b")).rows
    assert found == {"replace_att": Share(0.5, 2, 1), "replace (1 of 3)": Share(0.5, 2, 1)}


def foil(image: str, caption: str, wrong: str, votes: Any = 3) -> dict[str, Any]:
    return {"image_file": image, "caption": caption, "foil": wrong, "mturk": {"foil": 0, "caption": votes, "other": 0}}


def test_valse_counts_valid_pairs_by_both_protocols(tmp_path: Path) -> None:
    written = {"a1": foil("1.jpg", "a", "b"), "a2": foil("2.jpg", "c", "d", 1), "a3": foil("2.jpg", "e", "f", 2)}
    written["a3"]["mturk"] = str(written["a3"]["mturk"])  # as some files have it
    write_json(tmp_path / "counting-hard.json", written)
    write_json(tmp_path / "plurals.json", {"p": foil("3.jpg", "a", "a")})
    test = open_suite("valse", tmp_path)
    assert test.size == 3
    rows = test.ask(best("a", "f")).rows
    assert rows["counting-hard"] == Share(0.5, 2, 0) and rows["plurals"] == Share(0.0, 1, 1)
    assert rows["Counting (1 of 3)"] == Share(0.5, 2, 0)
    assert rows["avg (2 of 11)"] == Share(0.25, 3, 1)
    official = open_suite("valse_official", tmp_path, threshold=0.5).ask(best("a", "f")).rows
    assert official["counting-hard acc"] == Share(0.5, 2, 0) and official["counting-hard p_c"].value == 0.5
    assert official["plurals p_f"].value == 0.0 and official["plurals acc"].value == 0.5
    at_zero = open_suite("valse_official", tmp_path).ask(best("a", "f")).rows
    assert at_zero["counting-hard acc"].count == 1 and at_zero["counting-hard acc"].ties == 1  # the foil "b" has 0
    del written["a1"]["mturk"]
    write_json(tmp_path / "counting-hard.json", written)
    with pytest.raises(DataError, match=r"record a1 of .*counting-hard.json has no votes `mturk.caption`"):
        open_suite("valse", tmp_path)


def test_vl_checklist(tmp_path: Path) -> None:
    def corpus(kind: str, root: str, *pairs: tuple[str, list[str], list[str]]) -> None:
        path = tmp_path / "corpus" / f"{kind}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'ANNO_PATH: "vl-checklist/data/{kind}.json"\nIMG_ROOT: "{root}/"\nTYPE: "TUPLE_JSON"\n')
        write_json(tmp_path / "data" / f"{kind}.json", [[image, {"POS": p, "NEG": n}] for image, p, n in pairs])

    corpus(
        "Attribute/color/vg",
        "vg",
        ("VG_100K/1.jpg", ["a", "z"], ["b"]),
        ("2.jpg", ["a"], ["b"]),
        ("2.jpg", ["b"], ["a"]),
    )
    corpus("Attribute/color/vaw", "vg", ("3.jpg", ["c"], ["d"]))
    corpus("Object/Size/small/swig_place", "swig")
    corpus("Object/Size/large/hake", "hake", ("x/4.jpg", ["a"], ["b"]))
    test = open_suite("vl_checklist", tmp_path)
    assert test.pictures[0] == Picture("vg/3.jpg") and Picture("hake/x/4.jpg") in test.pictures
    rows = test.ask(best("a")).rows
    assert rows["Attribute/color/vg"] == Share(0.6667, 3, 0) and rows["Attribute/color/vaw"] == Share(0.0, 1, 1)
    assert rows["Attribute/color"].value == pytest.approx(0.6667 / 2)
    assert rows["Object/Size"].value == 1.0 and "Object/Size/small/swig_place" not in rows
    assert rows["avg (2 of 9)"].value == pytest.approx((0.6667 / 2 + 1) / 2)
    assert open_suite("vl_checklist", tmp_path, max_num=2).size == 3
    (tmp_path / "data" / "Attribute" / "color" / "vaw.json").unlink()
    with pytest.raises(
        DataError, match=r"vaw.yaml names vl-checklist/data/Attribute/color/vaw.json, which is not below"
    ):
        open_suite("vl_checklist", tmp_path)


def test_winoground(tmp_path: Path) -> None:
    example = {"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "caption_0": "a", "caption_1": "b"}
    (tmp_path / "examples.jsonl").write_text(
        json.dumps(example) + "\n" + json.dumps({**example, "caption_1": "a"}) + "\n"
    )
    judge = Told(lambda caption, picture: float((caption == "b") == picture.name.endswith("1")))
    rows = open_suite("winoground", tmp_path).ask(judge).rows
    assert judge.asked == [4]
    assert rows["text score"] == Share(0.5, 2, 1) and rows["group score"].value == 0.5


def box(name: str, relation: str | list[str], **changes: float) -> dict[str, Any]:
    sides = {"bbox_x": 2, "bbox_y": 3, "bbox_w": 10, "bbox_h": 8, **changes}
    key = "relation_name" if isinstance(relation, str) else "attributes"
    return {"image_path": name, **sides, "true_caption": "a", "false_caption": "b", key: relation}


def test_aro_relation(tmp_path: Path) -> None:
    records = [box("1.jpg", "on"), box("2.jpg", "on"), box("1.jpg", "holding"), box("1.jpg", "near")]
    records[2] |= {"true_caption": "b", "false_caption": "b"}
    write_json(tmp_path / "visual_genome_relation.json", records)
    test = open_suite("aro_relation", tmp_path)
    assert test.pictures[0] == Picture("1.jpg", (2, 3, 12, 11))
    rows = test.ask(best("a")).rows
    assert list(rows)[:3] == ["holding", "near", "on"] and rows["holding"] == Share(0.0, 1, 1)
    assert rows["macro accuracy"] == Share(0.5, 3, 1)  # without "near"
    assert rows["macro accuracy, symmetric ones too"].value == pytest.approx(2 / 3)
    write_json(tmp_path / "visual_genome_relation.json", [box("1.jpg", "on", bbox_w=0)])
    with pytest.raises(DataError, match=r"the box of record 0 of .* is 0.0 by 8.0 pixels"):
        open_suite("aro_relation", tmp_path)


def test_aro_attribution_drops_rare_pairs(tmp_path: Path) -> None:
    records = [box("1.jpg", ["red", "blue"])] * 25 + [box("1.jpg", ["blue", "red"])] * 24
    write_json(tmp_path / "visual_genome_attribution.json", records)
    rows = open_suite("aro_attribution", tmp_path).ask(best("a")).rows
    assert rows == {"red_blue": Share(1.0, 25, 0), "macro accuracy": Share(1.0, 25, 0)}


def test_order_sets_with_stored_and_with_made_shuffles(tmp_path: Path) -> None:
    shuffled = [["B a.", "b b", "a a", "A. b"], ["a b", "x", "y", "z"]]
    records: list[dict[str, Any]] = [{"image": "val2014/1.jpg", "caption": ["A b.", "c"], "shuffled": shuffled}]
    test = open_suite("aro_coco_order", write_json(tmp_path / "coco_karpathy_test.json", records))
    assert isinstance(test, Questions)
    assert test.questions[0].captions == ("a b", "b a", "b b", "a a", "a b")
    assert test.ask(best("a b")).rows == {"Precision@1": Share(0.5, 2, 1)}  # equal to a shuffle: right; "c": wrong
    for damaged in (shuffled[:1], [shuffled[0], "four"], [shuffled[0], [1, 2, 3, 4]], 3):
        records[0]["shuffled"] = damaged
        with pytest.raises(DataError, match="not four sentences for each of 2 captions"):
            open_suite("aro_coco_order", write_json(tmp_path / "x.json", records))
    del records[0]["shuffled"]
    flickr = write_json(tmp_path / "flickr30k_test.json", records)
    made = open_suite("aro_flickr_order", flickr, tagger="rules")
    assert isinstance(made, Questions) and made.note.startswith("shuffles by the built-in word lists and rules")
    assert all(len(q.captions) == 5 and sorted(q.captions[1]) == sorted(q.captions[0]) for q in made.questions)
    assert made.questions == open_suite("aro_flickr_order", flickr, tagger="rules").questions  # type: ignore[attr-defined]


def test_retrieval_with_tables_of_more_positives(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in (4, 5)]
    notes = [{"id": 10 + n, "image_id": 4 + n // 2, "caption": f"c{n}"} for n in range(4)]
    captions = write_json(tmp_path / "captions.json", {"images": images, "annotations": notes})
    tables = tmp_path / "eccv"
    for name, to_image, to_caption in (
        ("original", {"10": [4], "11": [4], "12": [5], "13": [5]}, {"4": [10, 11], "5": [12, 13]}),
        ("cxc", {"10": [4, 5], "12": [5]}, {"4": [10], "5": [10, 12]}),
        ("eccv", {"13": [4]}, {"5": [10, 13]}),
    ):
        write_json(tables / f"{name}_caption_to_image.json", to_image)
        write_json(tables / f"{name}_image_to_caption.json", to_caption)
    np.save(tables / "coco_test_ids.npy", np.array([10, 11, 12, 13]))
    scores = {("c0", 5): 3.0, ("c0", 4): 2.0, ("c1", 4): 1.0, ("c2", 5): 2.5, ("c3", 4): 2.7}
    judge = Told(lambda caption, picture: scores.get((caption, int(picture.name[-6:-4])), 0.0))
    rows = open_suite("retrieval", captions, positives=tables).ask(judge).rows
    assert rows["img_r1"] == Share(0.5, 4, 0) and rows["txt_r1"] == Share(0.0, 2, 0)
    assert rows["original img_r1"] == rows["img_r1"] and rows["original txt_r1"] == rows["txt_r1"]
    assert rows["CxC img_r1"] == Share(1.0, 2, 0) and rows["CxC txt_r1"] == Share(0.5, 2, 0)
    assert rows["ECCV img_r1"] == Share(1.0, 1, 0) and rows["ECCV txt_r1"] == Share(1.0, 1, 0)
    assert rows["ECCV txt_rp"].value == 0.5 and rows["ECCV txt_map_at_r"].value == 0.5
    without = open_suite("retrieval", captions, positives=tables).without([Picture("COCO_val2014_000000000005.jpg")])
    assert without.size == 2 and without.ask(judge).rows["img_r1"] == Share(1.0, 2, 0)
    listed = write_json(
        tmp_path / "list.json", [{"image": image["file_name"], "caption": [f"c{n}"]} for n, image in enumerate(images)]
    )
    with pytest.raises(DataError, match=re.escape(f"{listed} has 2 captions, at most 5 a COCO image, and")):
        open_suite("retrieval", listed, positives=tables)


def test_aro_retrieval_cleans_captions(tmp_path: Path) -> None:
    source = write_json(tmp_path / "captions.json", [{"image": "1.jpg", "caption": ["A  dog!", "a dog"]}])
    test = open_suite("aro_retrieval", source)
    assert [c.sentence for c in test.captions] == ["a dog", "a dog"]  # type: ignore[attr-defined]
    assert test.ask(best("a dog")).rows["txt_r1"].value == 1.0


PROMPTS = """# Prompts

## Pets

```bash
classes = [
    'cat',
    ['happy dog', 'dog'],
]

templates = [
    'a {}.',
    'the {}!',
]
```
"""


def test_zero_shot(tmp_path: Path) -> None:
    source = tmp_path / "prompts.md"
    source.write_text(PROMPTS)
    images = photos(tmp_path / "images", "cat/1.png", "cat/2.png", "Happy_Dog/1.png")
    test = open_suite("zero_shot", source, images=images, classes="Pets")
    assert test.size == 3 and test.pictures[0] == Picture("Happy_Dog/1.png")
    rows = test.ask(Told(lambda caption, picture: float(caption == "a cat." or picture.name == "cat/2.png"))).rows
    assert rows["top1"] == Share(2 / 3, 3, 1) and rows["top5"].value == 1.0
    assert rows["cat"].value == 1.0 and rows["happy dog"].value == 0.0 and rows["mean per class"].value == 0.5
    with pytest.raises(DataError, match=r"a score of Happy_Dog/1.png is NaN"):
        test.ask(Told(lambda caption, picture: math.nan))
    with pytest.raises(ConfigError, match="it has no part 'Pet'; did you mean Pets"):
        open_suite("zero_shot", source, images=images, classes="Pet")
    photos(images, "bird/1.png")
    with pytest.raises(DataError, match="bird is named like none of the classes"):
        open_suite("zero_shot", source, images=images, classes="Pets")
    plain = write_json(tmp_path / "p.json", {"classes": ["cat", "happy dog", "bird"], "templates": ["{}"]})
    assert open_suite("zero_shot", plain, images=images).size == 4
    write_json(plain, {"classes": ["cat"], "templates": ["a cat"]})
    with pytest.raises(DataError, match=r"templates that hold \{\}"):
        open_suite("zero_shot", plain, images=images)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"0": {"filename": "1.jpg"', "is not JSON"),
        ("3", "holds neither a list nor an object of records"),
        ("[3]", "record 0 of .* is '3', not an object"),
        ('[{"filename": 3}]', "record 0 of .* has no 'caption'"),
        ('[{"caption": 3}]', "'caption' of record 0 of .* is '3', not a text"),
    ],
)
def test_damaged_files(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "swap_obj.json").write_text(content)
    with pytest.raises(DataError, match=said):
        open_suite("sugarcrepe", tmp_path)
    (tmp_path / "swap_obj.json").unlink()
    with pytest.raises(DataError, match=r"holds no file of SugarCrepe, such as replace_obj.json"):
        open_suite("sugarcrepe", tmp_path)
