"""Losses of token sets and hidden states. Sets are ragged: rows of all items one after the other, and their lengths."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .registry import Items, Scores, full_precision, mean_or_zero, register


@register("attention_distillation")
def attention_distillation(
    text_tokens: Items, text_lengths: Items, image_tokens: Items, image_lengths: Items, teacher_attention: Scores
) -> Tensor:
    """Each word's attention over the regions of each image, after a teacher's (ALADIN, spec section 5, unused there):

        L[c,i,w] = log softmax over regions r of C_cw . V_ir / sqrt(E)
        mean over texts c, images i and words w of sum over r of T (ln T - L),  0 ln 0 = 0

    with the first token of each text and the first region of each image left out, T cropped to the regions of the
    image and divided by its sum over them.

    text_tokens C (N,E), text_lengths (A,), image_tokens V (M,E), image_lengths (B,); teacher_attention (A,B,>=T,>=R):
    its first places are the words and regions that are used. Regions of padding have no part (the published code
    gives infinite values there); a word that the teacher attends to no region of costs 0.
    """
    if not (len(text_tokens) and len(image_tokens)):
        return _zero(text_tokens, image_tokens)
    texts, word = _padded(text_tokens, text_lengths, first=1)  # (A,T,E), (A,T)
    images, region = _padded(image_tokens, image_lengths, first=1)  # (B,R,E), (B,R)
    (attention,) = full_precision(teacher_attention.detach())
    counted = (word[:, None, :, None] & region[None, :, None, :]).expand(len(texts), len(images), -1, -1)
    t = attention[:, :, : word.shape[1], : region.shape[1]] * counted
    t = t / t.sum(dim=3, keepdim=True).clamp(min=torch.finfo(t.dtype).tiny)
    with torch.autocast(texts.device.type, enabled=False):
        logits = torch.einsum("ate,bre->abtr", texts, images) / texts.shape[2] ** 0.5
    logs = logits.masked_fill(~region[None, :, None], torch.finfo(logits.dtype).min).log_softmax(dim=3)
    terms = torch.where(counted, torch.xlogy(t, t) - t * logs, 0.0).sum(dim=3)  # (A,B,T)
    return mean_or_zero(terms[word[:, None].expand_as(terms)])


@register("permutation_matching")
def permutation_matching(text_tokens: Items, text_lengths: Items, image_tokens: Items, image_lengths: Items) -> Tensor:
    """How well the sets of a matched pair cover one another, in any order (ALADIN, spec section 5, unused there):

        mean over pairs of 2n - sum_i max_j softmin_j(d_ij) - sum_j max_i softmin_i(d_ij),  softmin(x) = softmax(-x)

    with d the Euclidean distances of the n tokens of the text and the regions of its image.

    text_tokens (N,E), image_tokens (M,E); text_lengths, image_lengths (B,). A pair with an empty set costs 0.
    """
    if not (len(text_tokens) and len(image_tokens)):
        return _zero(text_tokens, image_tokens)
    texts, word = _padded(text_tokens, text_lengths)  # (B,T,E), (B,T)
    images, region = _padded(image_tokens, image_lengths)  # (B,R,E), (B,R)
    real = word[:, :, None] & region[:, None]
    distances = torch.cdist(texts, images, compute_mode="donot_use_mm_for_euclid_dist")  # (B,T,R)
    near = (-distances).masked_fill(~real, torch.finfo(distances.dtype).min)
    covered = distances.new_zeros(len(texts))
    for dim in (2, 1):
        covered = covered + torch.where(real, near.softmax(dim=dim), 0.0).amax(dim=dim).sum(dim=1)
    sizes = 2 * word.sum(dim=1) * real.flatten(1).any(dim=1)
    return mean_or_zero(sizes - covered)


@register("hidden_l1")
def hidden_l1(text_hidden: Items, image_hidden: Items, *, factor: float = 0.001) -> Tensor:
    """Size of the hidden states ("regularizehidden", ALADIN, spec section 5): factor (mean text + mean image) / 2.

    text_hidden (N,), image_hidden (M,): one number a position, the L1 norm over features of its hidden states, their
    mean over depth. A side without positions adds 0.
    """
    texts, images = full_precision(text_hidden, image_hidden)
    return factor * (mean_or_zero(texts) + mean_or_zero(images)) / 2


def _zero(*fields: Tensor) -> Tensor:
    """0, with a gradient of 0."""
    return torch.stack([x[:0].sum() for x in full_precision(*fields)]).sum()


def _padded(rows: Tensor, lengths: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """(N,E), (B,) -> (B,L,E) with zeros for padding, and which are real (B,L); the `first` rows of each left out."""
    (rows,) = full_precision(rows)
    sets = [item[first:] for item in rows.split(lengths.tolist())]
    padded = pad_sequence(sets, batch_first=True)
    counts = torch.tensor([len(item) for item in sets], device=rows.device)
    return padded, torch.arange(padded.shape[1], device=rows.device) < counts[:, None]
