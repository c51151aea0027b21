from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crossmodal.data.region_values import FAR, finite, require_usable
from crossmodal.errors import DataError


def test_every_number_of_half_precision() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for number in every:
        right = bool(np.isfinite(number))
        assert finite(np.array([number])) == right
        assert finite(np.array([[0, number], [-2, 5]], np.float16)) == right


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.dtype(">f4"), np.int32]),
        hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=6),
    )
)
def test_as_numpy_says(array: np.ndarray) -> None:
    assert finite(array) == bool(np.isfinite(array).all())
    assert finite(array.T) == finite(array)


@pytest.mark.parametrize("number", [-FAR, 0.0, 1.0, 1 + FAR])
def test_boxes_may_overshoot_a_little(number: float) -> None:
    boxes = np.full((2, 6), 0.5)
    boxes[1, 3] = number
    record = {"features": np.ones((2, 3), np.float32), "norm_bb": boxes}
    require_usable(record, "x")
    boxes[1, 3] += 0.01 if number > 0.5 else -0.01
    if abs(number - 0.5) > 0.5:
        with pytest.raises(DataError, match=r"x has a box outside its image \(a coordinate of (1\.06|-0\.06)"):
            require_usable(record, "x")


def test_no_boxes() -> None:
    with pytest.raises(DataError, match=r"x has no boxes"):
        require_usable({"features": np.ones((0, 3), np.float32), "norm_bb": np.ones((0, 6), np.float32)}, "x")
