"""Crops of evaluation and of training, by their definition."""

from __future__ import annotations

import math
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossmodal.data.pictures import MEAN, STD, centre_crop, normalised, open_picture, random_box, random_crop
from crossmodal.errors import DataError


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [
        ((61, 45), (43, 32), (6, 0)),  # int(32 * 61 / 45); (43 - 32) / 2 = 5.5 goes to the even 6
        ((45, 61), (32, 43), (0, 6)),
        ((64, 50), (40, 32), (4, 0)),
        ((53, 41), (41, 32), (4, 0)),  # 4.5 goes to the even 4
        ((32, 32), (32, 32), (0, 0)),
        ((7, 9), (32, 41), (0, 4)),
        ((1, 3), (32, 96), (0, 32)),
    ],
)
def test_the_centre(size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]) -> None:
    given = picture(*size)
    expected = np.asarray(given.resize(resized, Image.Resampling.BICUBIC))
    left, top = corner
    found = centre_crop(given, (32, 32))
    assert np.array_equal(np.asarray(found), expected[top : top + 32, left : left + 32])


def test_a_frame_that_is_no_square_takes_the_whole_picture() -> None:
    given = picture(50, 40)
    expected = given.resize((24, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(centre_crop(given, (16, 24))), np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_colours_are_converted_last(mode: str) -> None:
    given = picture(40, 40, mode)
    found = centre_crop(given, (20, 20))
    assert found.mode == "RGB"
    assert np.array_equal(
        np.asarray(found), np.asarray(given.resize((20, 20), Image.Resampling.BICUBIC).convert("RGB"))
    )


def test_numbers() -> None:
    given = picture(5, 4)
    expected = (np.asarray(given).transpose(2, 0, 1) / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[
        :, None, None
    ]
    np.testing.assert_allclose(normalised(given).numpy(), expected, atol=1e-6)


def test_random_boxes() -> None:
    generator, (height, width) = torch.Generator().manual_seed(0), (60, 80)
    for _ in range(200):
        top, left, h, w = random_box(height, width, generator, (0.3, 0.8), (0.5, 2.0))
        assert 0 <= top <= height - h and 0 <= left <= width - w
        assert 0.28 < h * w / (height * width) < 0.82 and 0.48 < w / h < 2.1


def test_the_order_of_draws() -> None:
    torch.manual_seed(3)
    area = 30 * 40 * torch.empty(1).uniform_(0.5, 0.6).item()
    aspect = math.exp(torch.empty(1).uniform_(math.log(0.9), math.log(1.1)).item())
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    top = torch.randint(0, 30 - h + 1, (1,)).item()
    left = torch.randint(0, 40 - w + 1, (1,)).item()
    torch.manual_seed(3)
    assert random_box(30, 40, None, (0.5, 0.6), (0.9, 1.1)) == (top, left, h, w)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10)), ((1, 9), (0, 4, 1, 1))],
)
def test_a_picture_in_which_no_box_fits(size: tuple[int, int], expected: tuple[int, int, int, int]) -> None:
    assert random_box(*size, torch.Generator().manual_seed(0)) == expected


def test_a_whole_picture_of_an_allowed_aspect() -> None:
    assert random_box(10, 10, torch.Generator().manual_seed(0), (1.5, 1.6), (0.9, 1.1)) == (0, 0, 10, 10)


def test_random_crops_are_boxes_resized() -> None:
    given = picture(50, 40)
    top, left, h, w = random_box(40, 50, torch.Generator().manual_seed(5))
    expected = given.crop((left, top, left + w, top + h)).resize((24, 16), Image.Resampling.BICUBIC)
    found = random_crop(given, (16, 24), torch.Generator().manual_seed(5))
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_what_holds_a_picture(tmp_path: Path) -> None:
    given = picture(6, 5)
    given.save(tmp_path / "a.png")
    item = namedtuple("item", "picture")
    for source in (given, tmp_path / "a.png", str(tmp_path / "a.png"), item(given), item(tmp_path / "a.png")):
        assert np.array_equal(np.asarray(open_picture(source)), np.asarray(given))
    palette = given.convert("P")
    palette.save(tmp_path / "p.png")
    assert open_picture(tmp_path / "p.png").mode == "P"


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    picture(64, 64).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    for name in ("text.jpg", "cut.jpg", "nowhere.jpg"):
        with pytest.raises(DataError, match=f"{name} cannot be read as a picture"):
            open_picture(tmp_path / name)
    with Image.open(tmp_path / "cut.jpg") as lazy, pytest.raises(DataError, match=r"cut\.jpg cannot be read"):
        open_picture(lazy)
    with pytest.raises(DataError, match="the model reads pictures, and ndarray is none"):
        open_picture(np.zeros((3, 3)))
