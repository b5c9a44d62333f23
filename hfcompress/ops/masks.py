"""From scores to masks of what to keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def keep_top(scores: Sequence[Tensor], density: float, *, multiple: int = 1, per_tensor: bool = False) -> list[Tensor]:
    """Return boolean masks that keep the highest `density` share of all entries of `scores`.

    scores: one 1-D tensor per layer; ranked together unless `per_tensor`. Every layer keeps at least one entry, and a
    count rounded to a multiple of `multiple` (kernels like aligned widths). Ties go to the lower index, so equal
    scores give the same mask on every machine.
    """
    if density >= 1.0:
        return [torch.ones_like(s, dtype=torch.bool) for s in scores]
    groups = [[s] for s in scores] if per_tensor else [list(scores)]
    counts = [count for group in groups for count in _counts(group, density)]
    return [_top(s, _rounded(count, len(s), multiple)) for s, count in zip(scores, counts, strict=True)]


def keep_share(scores: Sequence[Tensor], density: float, *, per_tensor: bool = False) -> list[Tensor]:
    """Return boolean masks, shaped like `scores`, that keep exactly the highest `density` share of all entries.

    Ranked together unless `per_tensor`; ties go to the earlier tensor, then to the lower index. For millions of
    entries, in the memory of one tensor beside the masks: a histogram over the leading 16 bits of every number leaves
    only the entries of one bucket to be sorted.
    """
    if per_tensor:
        return [keep_share([s], density)[0] for s in scores]
    count = round(density * sum(s.numel() for s in scores))
    histogram = torch.stack([_buckets(s).flatten().bincount(minlength=1 << 16).cpu() for s in scores]).sum(0)
    reached = histogram.flip(0).cumsum(0).flip(0)  # entries in this bucket or a higher one
    edge = int((reached >= count).nonzero()[-1])
    at_edge = [s[_buckets(s) == edge].float().cpu() for s in scores]
    chosen = _top(torch.cat(at_edge), count - int(reached[edge] - histogram[edge])).split([len(s) for s in at_edge])
    return [_above(_buckets(s), edge, part.to(s.device)) for s, part in zip(scores, chosen, strict=True)]


def _buckets(scores: Tensor) -> Tensor:
    """Return the leading 16 bits of each number as float32, so that larger numbers have no lower bucket."""
    bits = (scores.detach().float() + 0.0).view(torch.int32)  # + 0.0: no negative zero
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> 16) + (1 << 15)


def _above(buckets: Tensor, edge: int, chosen: Tensor) -> Tensor:
    mask = buckets > edge
    mask[buckets == edge] = chosen
    return mask


def _counts(group: Sequence[Tensor], density: float) -> list[int]:
    """Return how many entries of each tensor are among the top `density` of the whole group.

    Equal scores are taken from every tensor in turn, so that nothing is cut unevenly before anything was learned.
    """
    flat = torch.cat([s.detach().flatten().float() for s in group])
    turn = torch.cat([torch.arange(s.numel()) for s in group]).argsort(stable=True).to(flat.device)
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[turn] = _top(flat[turn], round(density * flat.numel()))
    return [int(part.sum()) for part in chosen.split([s.numel() for s in group])]


def _top(scores: Tensor, count: int) -> Tensor:
    order = torch.sort(scores.detach().float(), descending=True, stable=True).indices
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[order[:count]] = True
    return mask


def _rounded(count: int, total: int, multiple: int) -> int:
    count = max(1, multiple * round(count / multiple)) if count > 0 else 1
    return min(total, max(count, min(multiple, total)))


def keep_highest(scores: Tensor, count: int) -> Tensor:
    """Return the boolean mask of the `count` highest of `scores` (entries,); ties go to the lower index."""
    return _top(scores, count)


def keep_in_rows(scores: Tensor, density: float) -> Tensor:
    """Return a mask of `scores` (rows, columns) that keeps the largest round(density * columns) of every row."""
    return _largest_in_last(scores, round(density * scores.shape[-1]))


def keep_n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """Return a mask of `scores` (rows, columns) that keeps the n largest of every m consecutive columns.

    columns: a multiple of m; ties go to the lower index. N:M sparsity of Mishra 2021, section 2.
    """
    return _largest_in_last(scores.unflatten(-1, (-1, m)), n).flatten(-2)


def _largest_in_last(scores: Tensor, count: int) -> Tensor:
    order = torch.sort(scores.detach(), dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :count], True)
