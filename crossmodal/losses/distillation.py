"""Distillation between two score matrices of one batch, of any two models; no gradient reaches the teacher's.

All are ALADIN's (spec section 5) and cover both directions. Matrices are (texts, images).
"""

from __future__ import annotations

from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from .registry import Scores, full_precision, mean_or_zero, register


@register("listnet")
def listnet(
    teacher: Scores,
    student: Scores,
    *,
    scale: float = 6.0,
    epsilon: float = 1e-10,
    directions: Literal["both", "texts"] = "both",
    diagonal: bool = True,
) -> Tensor:
    """ListNet: the cross-entropy of two softmax distributions over the list of each query,

        mean over texts i of -sum over images j of softmax_j(T_i) log(softmax_j(scale S_i) + epsilon)
        + the same of images over texts

    teacher T, student S: (A,B). scale: of the student alone. directions: "texts" leaves out the second term, which
    is otherwise added, not averaged. diagonal=False drops the matched pairs from all lists; the matrices are square
    then. Lists without entries cost 0.

    The defaults are ALADIN's; DALR's (its spec section 7.8) is scale=1, epsilon=0, directions="texts",
    diagonal=False, and its factor gamma is the weight of the loss.
    """
    t, s = full_precision(teacher.detach(), student)
    terms = [_listnet_rows(t, s, scale, epsilon, diagonal)]
    if directions == "both":
        terms.append(_listnet_rows(t.T, s.T, scale, epsilon, diagonal))
    return torch.stack(terms).sum()


def _listnet_rows(teacher: Tensor, student: Tensor, scale: float, epsilon: float, diagonal: bool) -> Tensor:
    if not diagonal:
        teacher, student = _off_diagonal(teacher), _off_diagonal(student)
    logs = (scale * student).log_softmax(dim=1)
    if epsilon:
        logs = torch.logaddexp(logs, logs.new_tensor(log(epsilon)))
    return mean_or_zero(-(teacher.softmax(dim=1) * logs).sum(dim=1))


def _off_diagonal(matrix: Tensor) -> Tensor:
    """(B,B) -> (B,B-1): each row without its entry of the diagonal."""
    size = len(matrix)
    return matrix[~torch.eye(size, dtype=torch.bool, device=matrix.device)].view(size, max(size - 1, 0))


@register("score_regression")
class ScoreRegression(nn.Module):
    """Squared error after a learnt scale and bias ("mse"): the mean over all entries of (b_0 S + b_1 - T)^2.

    The parameter `wb` (2,) holds b, (0.5, 0.5) at first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wb = nn.Parameter(torch.tensor([0.5, 0.5]))

    def forward(self, teacher: Scores, student: Scores) -> Tensor:
        """teacher T, student S: (A,B)."""
        t, s, b = full_precision(teacher.detach(), student, self.wb)
        return mean_or_zero((b[0] * s + b[1] - t) ** 2)


@register("ordinal_distillation")
def ordinal_distillation(
    teacher: Scores, student: Scores, *, margin: float = 0.2, threshold: float = 0.1, stride: int = 3
) -> Tensor:
    """Order of the student's scores where the teacher's differ ("ordinal"): with the teacher T_i of a text sorted
    ascending and the student's scores S_i in that order,

        the mean over texts i and places k with T_i[k+stride] >= threshold of max(0, margin + S_i[k] - S_i[k+stride])
        + the same of images over texts

    teacher T, student S: (A,B). A direction in which no place is kept, lists of `stride` or fewer among them, costs 0
    (the published code gives NaN).
    """
    t, s = full_precision(teacher.detach(), student)
    total = s.new_zeros(())
    for dim in (1, 0):
        order = t.argsort(dim=dim, stable=True)
        lists, upper = s.gather(dim, order).movedim(dim, 0), t.gather(dim, order).movedim(dim, 0)[stride:]
        steps = lists[: len(upper)] - lists[stride:]
        total = total + mean_or_zero((margin + steps[upper >= threshold]).clamp(min=0))
    return total


@register("contrastive_distillation")
def contrastive_distillation(teacher: Scores, student: Scores, *, margin: float = 0.2) -> Tensor:
    """Hinges of the student at the teacher's hardest negatives ("contrastive"): with T' the teacher's matrix whose
    diagonal is 0, p_i the best image of text i and n_j the best text of image j in T',

        c_ij = max(0, margin + S_ij - S_ii),  d_ij = max(0, margin + S_ij - S_jj)
        sum over i and k of c_i,p_k + sum over k and j of d_n_k,j

    As published, each text meets the hardest images of all texts, and matched pairs count (with `margin`). The
    teacher's matrix stays as it was (the published code zeroes its diagonal in place).

    teacher, student: (B,B), text i matching image i.
    """
    t, s = full_precision(teacher.detach(), student)
    if not s.numel():
        return s.sum()
    t = t.masked_fill(torch.eye(len(t), dtype=torch.bool, device=t.device), 0)
    matched = s.diagonal()
    images = (margin + s - matched[:, None]).clamp(min=0)[:, t.argmax(dim=1)]
    texts = (margin + s - matched[None]).clamp(min=0)[t.argmax(dim=0)]
    return images.sum() + texts.sum()
