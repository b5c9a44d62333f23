"""Low-rank approximation of matrices under weights, and how much rank each gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .allocation import allocate


@dataclass(frozen=True)
class Decomposition:
    """W (rows, columns) = up (rows, k) down (k, columns), the components that matter most first.

    squares: (k,) what leaving a component out adds to the squared error, in the norm the decomposition was made for.
    """

    squares: Tensor
    up: Tensor
    down: Tensor

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return (down, up) of the best approximation of this rank, each component's size divided evenly between both.

        Rounding either factor then errs least in the product, and both train at one learning rate.
        """
        up, down = self.up[:, :rank], self.down[:rank]
        sizes = up.norm(dim=0), down.norm(dim=1)
        ratio = (sizes[1] / sizes[0].clamp(min=1e-30)).clamp(1e-30, 1e30).sqrt()
        return down / ratio[:, None], up * ratio


def decompose(weight: Tensor, *, rows: Tensor | None = None, root: Tensor | None = None) -> Decomposition:
    """Return the decomposition whose every cut is the best of its rank: least ||diag(rows) (W - W') root||_F.

    weight: (rows, columns). rows: (rows,) weights, or None for ones. root: S (columns, k) with S S^T the Gram matrix of
    the inputs, so that the norm is that of the output's error; None for the identity. With the singular vectors
    U, V of the weighted matrix, the best approximation is W' = U_r U_r^T W under `root` (no inverse of S: it may be
    singular) and W' = W V_r V_r^T under `rows`. ValueError for both at once.
    """
    wide = weight.double()
    if rows is not None and root is not None:
        raise ValueError("weights on rows and on columns at once have no such projection")
    weighted = wide if root is None else wide @ root.double()
    if rows is not None:
        weighted = rows.double()[:, None] * weighted
    left, values, right = torch.linalg.svd(weighted, full_matrices=False)
    if rows is not None:
        up, down = wide @ right.T, right
    else:
        up, down = left, left.T @ wide
    return Decomposition(values.square(), up.float(), down.float())  # of large models, all layers' are held at once


def gram_root(gram: Tensor) -> Tensor:
    """Return S (columns, columns) with S S^T = `gram`, by its eigenvalues: some of them may be zero."""
    values, vectors = torch.linalg.eigh(gram.double())
    return vectors * values.clamp(min=0).sqrt()


def principal_directions(moment: Tensor, number: int) -> tuple[Tensor, float]:
    """Return the eigenvectors (width, number) of the largest eigenvalues of a symmetric `moment`, and their share."""
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.clamp(min=0)
    share = values[-number:].sum() / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return vectors[:, -number:].flip(1), float(share)


def hyperplane(size: int) -> Tensor:
    """Return an orthonormal basis (size, size - 1) of what sums to zero, in float64."""
    ones = torch.ones(size, 1, dtype=torch.float64)
    others = torch.eye(size, dtype=torch.float64)[:, : size - 1]
    return torch.linalg.qr(torch.cat([ones, others], dim=1))[0][:, 1:]


def rank_of_energy(squares: Tensor, energy: float) -> int:
    """Return the least rank whose squared singular values sum to the share `energy` of all."""
    shares = squares.cumsum(0) / squares.sum().clamp(min=torch.finfo(squares.dtype).tiny)
    return min(int((shares < energy - 1e-12).sum()) + 1, len(squares))


def largest_saving_rank(rows: int, columns: int) -> int:
    """Return the largest rank whose two factors hold fewer numbers than the matrix; 0 when none does."""
    return (rows * columns - 1) // (rows + columns)


def allocate_ranks(
    squares: Sequence[Tensor], shapes: Sequence[tuple[int, int]], keep: float, multiple: int
) -> list[int | None]:
    """Return the rank of each matrix, None to leave it whole, with the least summed squared error within the budget.

    squares: (k,) per matrix, as of a `Decomposition`. keep: share of all the matrices' numbers that may be left. Ranks
    are multiples of `multiple`, or the largest that saves anything below that. Each component costs rows + columns
    numbers; that is the greedy choice by error per number, made exact. Raises TargetError when `keep` is too low.
    """
    options = [_options(shape, multiple) for shape in shapes]
    costs, errors = [], []
    for values, shape, ranks in zip(squares, shapes, options, strict=True):
        left = values.double().cpu().flip(0).cumsum(0).flip(0)  # of the components from each on
        left = torch.cat([left, left.new_zeros(max(0, max(ranks, default=0) + 1 - len(left)))])
        costs.append(torch.tensor([*(r * sum(shape) for r in ranks), math.prod(shape)]))
        errors.append(torch.cat([left[torch.tensor(ranks, dtype=torch.long)], left.new_zeros(1)]))
    chosen = allocate(errors, costs, keep)
    return [ranks[i] if i < len(ranks) else None for ranks, i in zip(options, chosen, strict=True)]


def _options(shape: tuple[int, int], multiple: int) -> list[int]:
    largest = largest_saving_rank(*shape)
    return list(range(multiple, largest + 1, multiple)) or ([largest] if largest else [])
