"""NDCG at 25: how relevant the best items of a query are, where also those count that merely resemble the right one.

Relevances come from a published file (`read_relevances`) or from the captions themselves (`rouge`). The published
code reports 0 whatever it is given; here the value is the mean over all queries (ALADIN, spec section 8).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crossmodal.errors import DataError
from crossmodal.files import write_whole
from crossmodal.retrieve.scoring import best_of

from .folds import check_folds
from .positives import Positives, positive_pairs

RANK = 25

_CHUNK = 1 << 22  # scores sorted at once


def ndcg(relevance: Tensor, order: Tensor, *, rank: int = RANK) -> Tensor:
    """NDCG@rank of every query: (Q,) float64.

    relevance: (Q,G) how relevant each item of the gallery is. order: (Q,k) the items found, best first; what is
    beyond `rank` doesn't count.

    DCG = sum over k = 0, 1, ... of (2^relevance - 1) / log2(k + 2), divided by that of the most relevant items in
    their order, as many as were found. A query without relevant items has 0.
    """
    order = order[:, :rank]
    found = relevance.gather(1, order)
    ideal = _dcg(relevance.topk(order.shape[1], dim=1).values)
    return torch.where(ideal == 0, 0, _dcg(found) / ideal.where(ideal != 0, 1))


def _dcg(relevance: Tensor) -> Tensor:
    discount = torch.log2(torch.arange(relevance.shape[1], dtype=torch.float64, device=relevance.device) + 2)
    return ((2 ** relevance.double() - 1) / discount).sum(dim=1)


def ndcg_of_scores(scores: Tensor, relevance: Tensor, *, rank: int = RANK) -> Tensor:
    """NDCG@rank of every row of scores (Q,G), whose best items are taken, equal ones in the order they stand."""
    step = max(1, _CHUNK // max(1, scores.shape[1]))
    parts = []
    for part, relevant in zip(scores.split(step), relevance.split(step), strict=True):
        columns = torch.arange(part.shape[1], device=part.device).expand_as(part)
        parts.append(ndcg(relevant, best_of(part, columns, rank).indices.to(relevant.device), rank=rank))
    return torch.cat(parts)


def ndcg_metrics(
    scores: Tensor, relevances: Mapping[str, Tensor], positives: Positives, *, folds: int = 1, rank: int = RANK
) -> dict[str, float]:
    """`img_ndcg_<name>` and `txt_ndcg_<name>` for each kind of relevance, means over the queries.

    scores: (A,B). relevances: name -> (A,B) of each caption to each image. positives: see `ranks`.
    folds: the images are cut as `run_protocol` does it, the result is the mean over folds.

    Raises DataError for relevances of another shape than the scores, or that are no numbers.
    """
    check_folds(folds, scores.shape[1])
    for name, relevance in relevances.items():
        if relevance.shape != scores.shape:
            raise DataError(
                f"the relevances {name} are for {relevance.shape[0]} captions and {relevance.shape[1]} images, and the "
                f"scores for {scores.shape[0]} and {scores.shape[1]}; give those of the same split"
            )
    pairs = positive_pairs(positives)
    out: dict[str, float] = {f"{side}_ndcg_{name}": 0.0 for name in relevances for side in ("img", "txt")}
    for columns in torch.arange(scores.shape[1]).tensor_split(folds):
        rows = pairs[torch.isin(pairs[:, 1], columns), 0].unique() if folds > 1 else slice(None)
        here = scores[rows][:, columns]
        for name, relevance in relevances.items():
            relevant = relevance[rows][:, columns]
            out[f"img_ndcg_{name}"] += float(ndcg_of_scores(here, relevant, rank=rank).mean()) / folds
            out[f"txt_ndcg_{name}"] += float(ndcg_of_scores(here.T, relevant.T, rank=rank).mean()) / folds
    for key, value in out.items():
        if not np.isfinite(value):
            raise DataError(f"{key} is {value}: its relevances hold values that are no numbers; make them anew")
    return out


def relevance_file(folder: str | Path, name: str, split: str, method: str) -> Path:
    """Where a published file of relevances lies: methods are `rougeL` and `spice`."""
    return Path(folder) / name / "relevances" / f"{name}-{split}-{method}.npy"


def read_relevances(path: str | Path, texts: int, images: int) -> Tensor:
    """(texts, images) float32 from a published file: in spite of its suffix nothing but little-endian float32.

    Raises DataError where the file is missing or holds another number of values.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        values = np.fromfile(path, dtype="<f4") if size == 4 * texts * images else None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give the folder of the relevances") from None
    if values is None:
        raise DataError(
            f"{path} has {size} bytes, and {texts} captions times {images} images of raw float32 have "
            f"{4 * texts * images}; give the file of this split, without a header"
        )
    return torch.from_numpy(values.astype(np.float32, copy=False)).view(texts, images)


def write_relevances(path: str | Path, relevance: Tensor) -> None:
    """Write (texts, images) in the published form; the file appears when it is complete."""
    values = relevance.cpu().numpy().astype("<f4")
    write_whole(Path(path), values.tofile)
