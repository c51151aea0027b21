"""ROUGE-L of captions against the captions of images: relevances for NDCG, without a file of them.

The longest common subsequence of a candidate with all references at once takes a few machine words a token: bit i
of a word stands for token i of the candidate, and is 0 where the subsequence grows there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .ndcg import read_relevances, write_relevances
from .positives import Positives, positive_pairs

BETA = 1.2

_BITS = 64


def tokens(caption: str) -> list[str]:
    """Lower-cased and split at single blanks, so that two blanks have an empty token between them."""
    return caption.lower().split(" ")


class References:
    """Captions that candidates are compared with: `lengths` (R,) in tokens."""

    def __init__(self, captions: Sequence[str]) -> None:
        self._number: dict[str, int] = {}
        number = self._number
        rows = [[number.setdefault(token, len(number)) for token in tokens(caption)] for caption in captions]
        self.lengths = np.array([len(row) for row in rows], dtype=np.int64)
        # The longest first: the k-th tokens of all that have so many are then those of the first references.
        order = np.argsort(-self.lengths, kind="stable")
        self._place = np.argsort(order)
        longest = int(self.lengths.max(initial=0))
        self._columns = [
            np.array([rows[i][k] for i in order[: int((self.lengths > k).sum())]], dtype=np.int64)
            for k in range(longest)
        ]
        self._masks = np.zeros(len(number), dtype=np.uint64)

    def common(self, candidate: Sequence[str]) -> np.ndarray:
        """(R,) the length of the longest common subsequence of a candidate's tokens with each reference."""
        found = self._by_words(candidate) if len(candidate) <= _BITS else self._by_rows(candidate)
        return found[self._place]

    def _by_words(self, candidate: Sequence[str]) -> np.ndarray:
        """A word a reference (Hyyrö 2004): V = (V + (V & M)) | (V & ~M), M the places of its token k."""
        known = [(i, self._number[token]) for i, token in enumerate(candidate) if token in self._number]
        for i, token in known:
            self._masks[token] |= np.uint64(1 << i)
        words = np.full(len(self.lengths), ~np.uint64(0))
        for column in self._columns:
            v = words[: len(column)]
            u = v & self._masks.take(column)
            np.bitwise_or(v + u, v - u, out=v)
        for _, token in known:
            self._masks[token] = 0
        return _ones(~words & np.uint64((1 << len(candidate)) - 1))

    def _by_rows(self, candidate: Sequence[str]) -> np.ndarray:
        """The table itself, a column at a time, for candidates that don't fit into a word: (R, tokens)."""
        numbers = np.array([self._number.get(token, -1) for token in candidate])
        table = np.zeros((len(self.lengths), len(candidate) + 1), dtype=np.int64)
        for column in self._columns:
            rows = table[: len(column)]
            grown = rows[:, :-1] + (numbers == column[:, None])
            rows[:, 1:] = np.maximum.accumulate(np.maximum(rows[:, 1:], grown), axis=1)
        return table[:, -1]


def _ones(words: np.ndarray) -> np.ndarray:
    """How many bits of each word are 1."""
    two, four, eight = (np.uint64(0x0101010101010101 * n) for n in (0x55, 0x33, 0x0F))
    words = words - ((words >> np.uint64(1)) & two)
    words = (words & four) + ((words >> np.uint64(2)) & four)
    words = (words + (words >> np.uint64(4))) & eight
    return ((words * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)


def rouge_l(candidate: str, references: Sequence[str], *, beta: float = BETA) -> float:
    """ROUGE-L of one caption against one or several (ALADIN, spec section 7).

    p is the largest share of the candidate's tokens in a common subsequence, r the largest share of a reference's,
    each with the reference that serves it best: (1 + beta^2) p r / (r + beta^2 p), or 0 where nothing is shared.
    """
    against = References(references)
    return float(_score(against, tokens(candidate), np.zeros(1, dtype=np.int64), beta)[0])


def rouge_relevances(captions: Sequence[str], positives: Positives, images: int, *, beta: float = BETA) -> Tensor:
    """(A,B) float32, ROUGE-L of every caption against the captions of every image.

    positives: the images of each caption, see `ranks`. An image without captions has 0.
    """
    pairs = positive_pairs(positives)
    of_images = pairs[pairs[:, 1].argsort(stable=True)].numpy()
    against = References([captions[i] for i in of_images[:, 0]])
    described, starts = np.unique(of_images[:, 1], return_index=True)
    out = np.zeros((len(captions), images), dtype=np.float32)
    for row, caption in enumerate(captions):
        out[row, described] = _score(against, tokens(caption), starts, beta)
    return torch.from_numpy(out)


def _score(against: References, candidate: Sequence[str], starts: np.ndarray, beta: float) -> np.ndarray:
    """One value for each run of references, which begin at `starts`."""
    common = against.common(candidate)
    p = np.maximum.reduceat(common, starts) / len(candidate)
    r = np.maximum.reduceat(common / against.lengths, starts)
    return np.where(p > 0, (1 + beta**2) * p * r / np.where(p > 0, r + beta**2 * p, 1), 0)


def cached_rouge_relevances(folder: Path, captions: Sequence[str], positives: Positives, images: int) -> Tensor:
    """`rouge_relevances`, kept in a file of `folder` whose name is of these captions and images."""
    content = json.dumps([list(captions), positive_pairs(positives).tolist(), images]).encode()
    path = folder / f"rougeL-{hashlib.sha256(content).hexdigest()[:16]}.npy"
    if not path.is_file():
        write_relevances(path, rouge_relevances(captions, positives, images))
    return read_relevances(path, len(captions), images)
