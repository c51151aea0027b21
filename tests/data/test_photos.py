from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from crossmodal.commands.data import app
from crossmodal.data.crops import grid, salient
from crossmodal.data.extractors import GridExtractor, build_extractor
from crossmodal.data.photos import open_photo, write_photo_db
from crossmodal.data.regions import open_regions
from crossmodal.errors import ConfigError, DataError


def picture(
    colour: str = "red", at: tuple[int, int] = (40, 30), size: tuple[int, int] = (160, 120), width: int = 40
) -> Image.Image:
    image = Image.new("RGB", size, "grey")
    ImageDraw.Draw(image).ellipse((*at, at[0] + width, at[1] + width), fill=colour)
    return image


def test_regions_of_a_picture() -> None:
    item = GridExtractor(64)(picture(), "a.npz")
    assert item.features.shape == (len(item), 64) and item.features.dtype == np.float32
    assert 30 < len(item) <= 36 and (item.features >= 0).all() and (item.features > 0).any(1).all()
    assert (item.boxes >= 0).all() and (item.boxes <= 1).all()
    np.testing.assert_allclose(item.boxes[:, 4:], item.boxes[:, 2:4] - item.boxes[:, :2])
    assert item.confidence is not None and (np.diff(item.confidence) <= 0).all()
    assert item.confidence.min() > 0.2 and item.confidence.max() == 1
    assert np.array_equal(item.boxes[0, :4], [0, 0, 1, 1])


def test_equal_pictures_give_equal_regions() -> None:
    one, two = (GridExtractor(64)(picture(), "a.npz") for _ in range(2))
    assert np.array_equal(one.features, two.features) and np.array_equal(one.boxes, two.boxes)
    other = GridExtractor(64, seed=1)(picture(), "a.npz")
    assert not np.array_equal(one.features, other.features)


def test_a_region_is_described_by_its_content_alone() -> None:
    """The same thing elsewhere has the same feature; another colour is further away than another place."""
    extractor = GridExtractor(256, grids=(4,), crops=0)

    def cell(colour: str, column: int) -> np.ndarray:
        item = extractor(picture(colour, (column * 40 + 8, 48), (160, 160), 24), "a.npz")
        index = np.flatnonzero(np.all(item.boxes[:, :2] == np.array([column / 4, 0.25]), axis=1))
        return item.features[index[0]]

    np.testing.assert_allclose(cell("red", 0), cell("red", 2), atol=1e-4)
    assert np.linalg.norm(cell("red", 0) - cell("blue", 0)) > 1


def test_an_extractor_is_rebuilt_from_its_options() -> None:
    extractor = GridExtractor(16, grids=(1, 2), crops=2, seed=3)
    again = build_extractor(extractor.options)
    assert again.identity == extractor.identity
    assert np.array_equal(again(picture()).features, extractor(picture()).features)
    with pytest.raises(ConfigError, match="grid"):
        build_extractor({"use": "gird"})
    with pytest.raises(ConfigError, match=r"'grid' cannot be built .*colour"):
        build_extractor({"use": "grid", "colour": 1})


def test_crops_find_what_stands_out() -> None:
    corners, saliency = salient(picture(at=(100, 60)), grid(2), 1)
    assert len(corners) == 5 and saliency.min() >= 0 and saliency.max() <= 1
    x1, y1, x2, y2 = corners[4] * (160, 120, 160, 120)
    assert x1 < 120 < x2 and y1 < 80 < y2


def test_tiny_and_colourless_pictures() -> None:
    for size in ((1, 1), (3, 200), (500, 2)):
        item = GridExtractor(16)(Image.new("RGB", size), "a.npz")
        assert np.isfinite(item.features).all() and len(item) > 30


@pytest.mark.parametrize("workers", [1, 2])
def test_folder_of_photos(tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    picture().save(photos / "b.jpg")
    picture("blue").convert("L").save(photos / "a.PNG")
    picture("blue").convert("P").save(photos / "p.png")
    (photos / "cut.jpeg").write_bytes((photos / "b.jpg").read_bytes()[:400])
    (photos / "empty.png").write_bytes(b"")
    (photos / "notes.txt").write_text("not a picture")
    write_photo_db(photos, tmp_path / "db", extractor=GridExtractor(32), workers=workers)
    db = open_regions(tmp_path / "db")
    assert db.ids == ["a.npz", "b.npz", "p.npz"] and db.feature_dim == 32
    item = GridExtractor(32)(open_photo(photos / "b.jpg"), "b.npz")
    assert np.array_equal(db["b"].features, item.features.astype(np.float16))
    skipped = json.loads((tmp_path / "db" / "skipped_feat_th0.2_max100_min10.json").read_text())
    assert sorted(skipped) == ["cut.npz", "empty.npz"] and "2 unreadable images" in caplog.text


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    picture().save(tmp_path / "a.jpg", exif=exif)
    assert open_photo(tmp_path / "a.jpg").size == (120, 160)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        write_photo_db(tmp_path / "nowhere", tmp_path / "db")
    with pytest.raises(DataError, match="no picture"):
        write_photo_db(tmp_path, tmp_path / "db")
    for name in ("a.png", "a.jpg"):
        picture().save(tmp_path / name)
    with pytest.raises(DataError, match=r"both be stored as a\.npz"):
        write_photo_db(tmp_path, tmp_path / "db")


def test_command(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    result = CliRunner().invoke(app, ["photos", str(tmp_path), "--output", str(tmp_path / "db"), "--feature-dim", "16"])
    assert result.exit_code == 0, result.output
    assert "stand-in for a detector" in result.output and "1 images" in result.output
