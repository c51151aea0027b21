"""Confidence intervals for recall: the percentile bootstrap over queries."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from crossmodal.errors import ConfigError

from .ranks import Ranks
from .recall import KS

Intervals = dict[str, tuple[float, float]]


def bootstrap(
    ranked: Ranks,
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    image_of: Tensor | None = None,
) -> Intervals:
    """Percentile bootstrap intervals (low, high) of the nine published recalls, as fractions.

    Queries are drawn with replacement `samples` times, from `numpy.random.default_rng(seed)`, and the recalls
    of the correct count are taken on each draw. The gallery stays as it is: the intervals say how much the
    figures depend on which queries were asked, not on the training seed.

    image_of: (texts,) the image column of each caption. Without it captions and images are drawn each on
        their own. With it images are drawn, and each brings all its captions: the captions of one image
        succeed and fail together, so the intervals of `img_*` come out wider, and more honest.

    Raises ConfigError for a confidence outside (0, 1) or fewer than one sample.
    """
    if not 0 < confidence < 1 or samples < 1:
        raise ConfigError(
            f"bootstrap: confidence {confidence} with {samples} samples: "
            "choose a confidence between 0 and 1 and at least one sample"
        )
    rng = np.random.default_rng(seed)
    text, image = _hits(ranked.text), _hits(ranked.image)
    if image_of is None:
        drawn = {"txt": _draw(text, samples, rng), "img": _draw(image, samples, rng)}
    else:
        drawn = _draw_images(text, image, image_of.numpy(), samples, rng)
    values: dict[str, np.ndarray] = {}
    for side, recalls in drawn.items():
        values |= {f"{side}_r{k}": recalls[:, i] for i, k in enumerate(KS)}
        values[f"{side}_r_mean"] = recalls.mean(1)
    values["r_mean"] = (values["txt_r_mean"] + values["img_r_mean"]) / 2
    tail = (1 - confidence) / 2
    bounds = {name: np.quantile(v, [tail, 1 - tail]) for name, v in values.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def _hits(rank: Tensor) -> np.ndarray:
    """(N, 1+len(KS)) float: is it a query (has a right item), and is its rank below each K."""
    columns = [~rank.isnan(), *(rank < k for k in KS)]
    return torch.stack(columns, dim=1).double().numpy()


def _draw(hits: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """(samples, len(KS)) recalls.

    A draw of N queries matters only through how many fall in each band of ranks (below 1, 1 to 4, 5 to 9, the
    rest), and those numbers are multinomial: no query is drawn one by one.
    """
    count = int(hits[:, 0].sum())
    below = np.concatenate([hits[:, 1:].sum(0), [count]])
    bands = np.diff(below, prepend=0.0)
    drawn = rng.multinomial(count, bands / count, size=samples)
    return np.asarray(drawn.cumsum(1)[:, :-1] / count)


def _draw_images(
    text: np.ndarray, image: np.ndarray, image_of: np.ndarray, samples: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """(samples, len(KS)) recalls a direction, from draws of whole images with their captions."""
    captions = np.zeros_like(text)  # (images, 1+len(KS)): the sums over each image's captions
    np.add.at(captions, image_of, image)
    count = len(text)
    sums = {"txt": np.empty((samples, text.shape[1])), "img": np.empty((samples, text.shape[1]))}
    step = max(1, (1 << 22) // count)
    for low in range(0, samples, step):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=min(step, samples - low))
        sums["txt"][low : low + step] = weights @ text
        sums["img"][low : low + step] = weights @ captions
    return {side: s[:, 1:] / np.maximum(s[:, :1], 1) for side, s in sums.items()}
