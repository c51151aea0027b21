"""Bootstrap intervals: seeded, equal in distribution to drawing queries, and of the coverage they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crossmodal.errors import ConfigError
from crossmodal.evaluate.bootstrap import bootstrap
from crossmodal.evaluate.ranks import Ranks
from crossmodal.evaluate.recall import NAMES, recall


def _ranks(image: np.ndarray, text: np.ndarray) -> Ranks:
    a, b = torch.as_tensor(image, dtype=torch.float64), torch.as_tensor(text, dtype=torch.float64)
    return Ranks(a, b, torch.zeros(len(a), dtype=torch.int64), torch.zeros(len(b), dtype=torch.int64))


def _random(seed: int, images: int = 200) -> Ranks:
    rng = np.random.default_rng(seed)
    return _ranks(rng.geometric(0.3, 5 * images) - 1, rng.geometric(0.5, images) - 1)


IMAGE_OF = torch.arange(1000) // 5


@pytest.mark.parametrize("image_of", [None, IMAGE_OF])
def test_seeded_and_around_the_point(image_of: torch.Tensor | None) -> None:
    ranked = _random(0)
    found = bootstrap(ranked, seed=7, image_of=image_of)
    assert found == bootstrap(ranked, seed=7, image_of=image_of)
    assert found != bootstrap(ranked, seed=8, image_of=image_of)
    assert set(found) == set(NAMES)
    point = recall(ranked)
    assert all(0 <= low <= point[name] <= high <= 1 for name, (low, high) in found.items())


def test_equals_drawing_queries_one_by_one() -> None:
    ranked = _random(1)
    rng = np.random.default_rng(0)
    drawn = rng.choice(ranked.image.numpy(), size=(20_000, 1000))
    expected = np.quantile((drawn < 5).mean(1), [0.025, 0.975])
    np.testing.assert_allclose(bootstrap(ranked, samples=20_000)["img_r5"], expected, atol=0.002)


def test_drawing_images_keeps_captions_together() -> None:
    hit = np.repeat(np.random.default_rng(0).integers(0, 2, 200), 5)  # all captions of an image agree
    ranked = _ranks(np.where(hit, 0, 50), np.zeros(200))
    low, high = bootstrap(ranked)["img_r1"]
    wide_low, wide_high = bootstrap(ranked, image_of=IMAGE_OF)["img_r1"]
    # 200 independent answers instead of 1000: wider by about the root of 5
    assert (wide_high - wide_low) / (high - low) == pytest.approx(5**0.5, rel=0.15)


def test_coverage() -> None:
    truth = 0.3  # P(rank < 1) of the geometric ranks
    inside = [low <= truth <= high for low, high in (bootstrap(_random(s))["img_r1"] for s in range(300))]
    assert 0.90 <= np.mean(inside) <= 0.99


def test_degenerate() -> None:
    perfect = bootstrap(_ranks(np.zeros(1), np.zeros(1)))
    assert set(perfect.values()) == {(1.0, 1.0)}
    unanswerable = _ranks(np.array([0.0, np.nan, 20.0]), np.array([0.0, np.nan]))
    assert bootstrap(unanswerable)["txt_r1"] == (1.0, 1.0)


@pytest.mark.parametrize(("confidence", "samples"), [(0.0, 10), (1.0, 10), (0.9, 0)])
def test_impossible_options(confidence: float, samples: int) -> None:
    with pytest.raises(ConfigError, match="confidence"):
        bootstrap(_random(0), confidence=confidence, samples=samples)
