"""Whether the numbers of a record can be used: finite, and boxes that lie in their image."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmodal.errors import DataError

Array = NDArray[Any]

FAR = 0.05
"""How far beyond [0,1] a box may reach: detectors overshoot by a pixel or two. `crossmodal data check` is stricter."""

_FLOATS = frozenset({"features", "norm_bb", "conf", "soft_labels"})
_BITS = {  # of a float of so many bytes: its bits as a number without sign and with, and those of infinity
    2: (np.uint16, np.int16, 0x7C00, 0xFC00),
    4: (np.uint32, np.int32, 0x7F800000, 0xFF800000),
}


def require_usable(record: Mapping[str, Array], where: str) -> None:
    """Raises DataError, beginning with `where`, unless every number is finite and every box in its image.

    record: features (R,F), norm_bb (R,6), perhaps conf (R,1) and soft_labels (R,C), all floats, R at least 1, whose
    shapes have been checked; perhaps others of any kind.
    """
    for name, array in record.items():
        if name in _FLOATS and array.dtype.kind != "f":
            raise DataError(f"{where} has {name} of {array.dtype} instead of floats; extract that image again.")
        if name in _FLOATS and not array.size:
            raise DataError(f"{where} has no boxes ({name} {array.shape}); extract that image again or leave it out.")
        if name != "norm_bb" and not finite(array):
            raise DataError(f"{where} holds NaN or infinite {name}; extract that image again or leave it out.")
    boxes = record["norm_bb"]
    low, high = float(boxes.min()), float(boxes.max())
    if not (low >= -FAR and high <= 1 + FAR):  # so also for NaN
        if not isfinite(low + high):
            raise DataError(f"{where} holds NaN or infinite norm_bb; extract that image again or leave it out.")
        far = high if high - 1 > -low else low
        raise DataError(
            f"{where} has a box outside its image (a coordinate of {far:.4g}, where 0 to 1 is the image, or a negative "
            "size); check the image's size and extract that image again, or leave it out."
        )


def finite(array: Array) -> bool:
    """Whether no number is NaN or infinite; for half precision dozens of times as fast as ``np.isfinite``.

    The bits of floats, read as whole numbers, are in order of magnitude, infinity and NaN at the end: for those
    with a sign at the end of the numbers without sign, for the others at the end of those with one.
    """
    if array.dtype.kind != "f":
        return True
    bits = _BITS.get(array.dtype.itemsize)
    if bits is None or not array.dtype.isnative or not array.flags.c_contiguous:
        return bool(np.isfinite(array).all())
    unsigned, signed, infinity, below = bits
    largest = array.view(unsigned).max(initial=0)
    if largest < infinity:
        return True
    return bool(largest < below and array.view(signed).max() < infinity)
