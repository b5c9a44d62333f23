"""Relations between the tokens of one text: what attention computes, and the same of any two sets of vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def relation_kl(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int, mask: Tensor | None = None
) -> Tensor:
    """Return the mean over relation heads and real tokens of KL(teacher || student) (Wang 2021, MiniLMv2, eq. 4).

    student, teacher: two sets of vectors, each (batch, length, width), such as queries twice or queries and keys; the
    width is cut into `heads` of its own, so that models of other widths and heads compare. mask: (batch, length), 1 for
    real tokens. With the values twice it is MiniLM's value relation (Wang 2020, eq. 5).
    """
    ours, theirs = (_log_relations(*vectors, heads, mask) for vectors in (student, teacher))
    return _rows_mean(_divergence(theirs, ours), mask)


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean over heads and real tokens of KL(teacher || student) of attention (Wang 2020, eq. 3).

    student, teacher: (batch, heads, length, length) probabilities; mask: (batch, length), 1 for real tokens. Where the
    student's are 0, by dropout or because a position may not be seen, there is nothing to compare and no gradient.
    """
    seen = (student > 0) & (teacher > 0)
    ours, theirs = _log(student), _log(teacher)
    return _rows_mean((teacher.float() * (theirs - ours) * seen).sum(-1), mask)


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the squared error of attention probabilities, summed over the tokens attended to, as a mean of the rest.

    Shapes as in `attention_kl`.
    """
    return _rows_mean((student.float() - teacher.float()).square().sum(-1), mask)


def attention_scores_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared error of attention scores (TinyBERT, Jiao 2020, eq. 7).

    Shapes as in `attention_kl`. Scores are read off probabilities as their logarithms less the mean of each row:
    softmax does not see the constant that this leaves open. Entries of either model that are 0 do not count.
    """
    seen = (student > 0) & (teacher > 0)
    ours, theirs = (_centred(_log(p), seen) for p in (student, teacher))
    error = ((ours - theirs).square() * seen).sum(-1) / seen.sum(-1).clamp(min=1)
    return _rows_mean(error, mask)


def activation_map_mse(student: Tensor, teacher: Tensor, power: float, mask: Tensor | None = None) -> Tensor:
    """Return the squared distance of normalized activation maps, a mean over the batch (Zagoruyko 2017, eq. 2).

    student, teacher: (batch, length, width) or feature maps (batch, channels, height, width), of any width each. A map
    is the sum over channels of |activation|^power at every place, divided by its length. mask: (batch, length).
    """
    ours, theirs = (_map(hidden, power, mask) for hidden in (student, teacher))
    return (ours - theirs).square().sum(-1).mean()


def _log_relations(left: Tensor, right: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Return log softmax(A B^T / sqrt(d)) (batch, heads, length, length), with no weight on padding."""
    left, right = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (left, right))
    scores = left @ right.transpose(-1, -2) / left.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.bool()[:, None, None, :], torch.finfo(scores.dtype).min)
    return F.log_softmax(scores, dim=-1)


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """Return KL(wanted || found) of log probabilities over the last dimension."""
    return F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)


def _rows_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of (batch, heads, length) over heads and the rows of real tokens."""
    if mask is None:
        return values.mean()
    rows = mask.to(values.dtype)[:, None, :]
    return (values * rows).sum() / (rows.sum() * values.shape[1]).clamp(min=1)


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.float().clamp(min=torch.finfo(torch.float32).tiny).log()


def _centred(scores: Tensor, seen: Tensor) -> Tensor:
    return scores - (scores * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp(min=1)


def _map(hidden: Tensor, power: float, mask: Tensor | None) -> Tensor:
    """Return the normalized map (batch, places)."""
    found = hidden.float().abs().pow(power).sum(1 if hidden.dim() == 4 else -1).flatten(1)
    if mask is not None and hidden.dim() == 3:
        found = found * mask.to(found.dtype)
    return F.normalize(found, dim=1)
