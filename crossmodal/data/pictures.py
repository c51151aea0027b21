"""Pictures as CLIP reads them: Pillow's resizing, the crops of evaluation and training (CE-CLIP, spec section 2.5)."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crossmodal.errors import DataError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SCALE = (0.9, 1.0)
RATIO = (3 / 4, 4 / 3)

_ATTEMPTS = 10

Range = tuple[float, float]
Size = tuple[int, int]


def open_picture(source: Any) -> Image.Image:
    """A picture: one of Pillow's, a path, or an item whose `picture` is one of the two; decoded, in its own mode.

    Raises DataError where there is none, or it cannot be decoded.
    """
    source = getattr(source, "picture", source)
    if not isinstance(source, (Image.Image, str, os.PathLike)):
        raise DataError(
            f"the model reads pictures, and {type(source).__name__} is none; give a file, an image of Pillow, or a "
            "folder or database of pictures"
        )
    try:
        if isinstance(source, Image.Image):
            source.load()
            return source
        with Image.open(Path(source)) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        name = getattr(source, "filename", None) or (source if not isinstance(source, Image.Image) else "a picture")
        raise DataError(f"{name} cannot be read as a picture ({error}); replace it or leave it out") from None


def centre_crop(picture: Image.Image, size: Size) -> Image.Image:
    """The middle of a picture whose short side is made the model's: (height, width) in pixels, RGB.

    Where height and width differ, the whole picture is squeezed to them. Colours are converted last, which matters
    for palettes and transparency alone.
    """
    height, width = size
    if height != width:
        return picture.resize((width, height), Image.Resampling.BICUBIC).convert("RGB")
    short, long = min(picture.size), max(picture.size)
    longer = int(height * long / short)
    resized = (height, longer) if picture.width <= picture.height else (longer, height)
    picture = picture.resize(resized, Image.Resampling.BICUBIC)
    left, top = (round((side - height) / 2) for side in picture.size)  # halves to the even number
    return picture.crop((left, top, left + width, top + height)).convert("RGB")


def random_crop(
    picture: Image.Image, size: Size, generator: torch.Generator | None, scale: Range = SCALE, ratio: Range = RATIO
) -> Image.Image:
    """A random box of the picture (`random_box`), resized to (height, width) and made RGB."""
    top, left, height, width = random_box(picture.height, picture.width, generator, scale, ratio)
    box = picture.crop((left, top, left + width, top + height))
    return box.resize((size[1], size[0]), Image.Resampling.BICUBIC).convert("RGB")


def random_box(
    height: int, width: int, generator: torch.Generator | None, scale: Range = SCALE, ratio: Range = RATIO
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random box with a share of the area in `scale` and width / height in `ratio`.

    generator: on the CPU; None takes torch's own. The order of draws is the published one: area, aspect and, where
    such a box fits, top and left; the tenth failure gives the largest box in the middle that has an allowed aspect.
    """
    low, high = torch.log(torch.tensor(ratio)).tolist()
    for _ in range(_ATTEMPTS):
        area = height * width * float(torch.empty(1).uniform_(*scale, generator=generator))
        aspect = float(torch.empty(1).uniform_(low, high, generator=generator).exp())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return top, left, h, w
    h, w = height, width
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def normalised(picture: Image.Image, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """An RGB picture as (3,H,W) float32: (x / 255 - mean) / std."""
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div(255)
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
