"""Optimal Brain Surgeon, column by column: what one column loses, the columns after it make up for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..core.errors import DataError
from .masks import keep_n_of_m, keep_share
from .quantization import Clip, Grid, Quantized, encode, fit

LAZY_COLUMNS = 128  # columns settled before the rest of the matrix is updated, in one product

Settle = Callable[[Tensor, int], Tensor]


def inverse_factor(gram: Tensor, damping: float = 0.01) -> Tensor:
    """Return the upper Cholesky factor U of H^-1 = U^T U, which every row of a weight shares (Frantar 2022, step 3).

    gram: X^T X, (columns, columns), float32; used as working memory. `damping` is a share of the mean of its diagonal
    that is added to the diagonal; where float32 does not suffice to factorize the result, ten times as much, and so on.
    An input that was always zero gets a diagonal of one, which ties it to no other. DataError when nothing helps.
    """
    diagonal = gram.diagonal()
    diagonal[diagonal == 0] = 1.0
    mean = float(diagonal.mean())
    added = 0.0
    for _ in range(6):
        diagonal += damping * mean - added
        added, damping = damping * mean, max(damping, 1e-4) * 10
        found, failed = torch.linalg.cholesky_ex(gram)
        if not failed:
            found = torch.cholesky_inverse(found)  # under one name, so that no more than two of them are held
            found, failed = torch.linalg.cholesky_ex(found, upper=True)
            if not failed:
                return found
    raise DataError("the second moments of a layer's inputs cannot be factorized: does this data give NaN?")


def settle_columns(weight: Tensor, factor: Tensor, settle: Settle, lazy: int = LAZY_COLUMNS) -> Tensor:
    """Return `weight` with every column replaced by what `settle` makes of it, errors spread over later columns.

    weight: (rows, columns) float32. factor: of `inverse_factor`. settle(rest, j): given the present values of column j
    and those after it in the same `lazy` columns, (rows, at least 1), returns the final column j, (rows,). The errors
    of `lazy` columns reach the columns beyond them together (Frantar 2022, algorithm 1).
    """
    columns = weight.T.clone(memory_format=torch.contiguous_format)  # one after the other: several times as fast
    for start in range(0, len(columns), lazy):
        stop = min(start + lazy, len(columns))
        errors = torch.empty_like(columns[start:stop])
        for j in range(start, stop):
            rest, error = columns[j:stop], errors[j - start]
            final = settle(rest.T, j)
            error.copy_((rest[0] - final) / factor[j, j])
            rest[0] = final
            rest[1:].addr_(factor[j, j + 1 : stop], error, alpha=-1)
        columns[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return columns.T


def prune(weight: Tensor, factor: Tensor, *, density: float = 0.5, pattern: tuple[int, int] | None = None) -> Tensor:
    """Return `weight` with the least harmful entries at zero and the others adjusted (SparseGPT, Frantar 2023, alg. 1).

    weight: (rows, columns) float32. Keeps the `density` largest of w^2 / [H^-1]_jj within the rows of `LAZY_COLUMNS`
    columns, or with `pattern` (n, m) the n largest of every m columns in a row.
    """
    lazy = LAZY_COLUMNS if pattern is None else pattern[1] * max(1, LAZY_COLUMNS // pattern[1])
    at_once = lazy if pattern is None else pattern[1]
    diagonal, mask = factor.diagonal(), torch.empty(0)

    def settle(rest: Tensor, j: int) -> Tensor:
        nonlocal mask
        if j % at_once == 0:
            part = rest[:, :at_once]
            scores = (part / diagonal[j : j + part.shape[1]]).square()
            mask = keep_share([scores], density)[0] if pattern is None else keep_n_of_m(scores, *pattern)
        return rest[:, 0] * mask[:, j % at_once]

    return settle_columns(weight, factor, settle, lazy)


def quantize_in_order(
    weight: Tensor,
    factor: Tensor,
    grid: Grid,
    *,
    clip: Clip = "max",
    static_groups: bool = False,
    order: Tensor | None = None,
) -> Quantized:
    """Return `weight` on `grid`, every column's rounding error made up for by later columns (GPTQ, Frantar 2022).

    weight: (rows, columns) float32. factor: of `inverse_factor`, for the columns in `order` when that is given, the
    order in which they are rounded. Scales are fitted to a group when its turn comes, or with `static_groups`, and
    always with `order`, to the weight as it was. A weight that is zero stays zero where the grid has a zero.
    """
    columns = weight.shape[1]
    size = min(grid.group_size or columns, columns)
    in_turn = size < columns and order is None and not static_groups
    scale, zero = fit(weight, grid, "max" if in_turn else clip)
    codes = torch.empty(weight.shape, dtype=torch.int8 if grid.symmetric else torch.uint8)  # a column at its turn
    nonzero = weight != 0 if grid.has_zero else torch.ones_like(weight, dtype=torch.bool)
    one = replace(grid, group_size=None)
    at = range(columns) if order is None else order.tolist()

    def settle(rest: Tensor, j: int) -> Tensor:
        group = slice(at[j] // size, at[j] // size + 1)
        if in_turn and j % size == 0:
            scale[:, group], fitted = fit(rest[:, :size], one, clip)
            if zero is not None and fitted is not None:
                zero[:, group] = fitted
        part = scale[:, group], None if zero is None else zero[:, group]
        column = encode(rest[:, :1] * nonzero[:, at[j], None], *part, one)
        codes[:, at[j]] = column[:, 0]
        return Quantized(column, *part, one).dequantize()[:, 0]

    lazy = size * max(1, LAZY_COLUMNS // size) if in_turn else LAZY_COLUMNS  # a whole group is at hand at its turn
    settle_columns(weight if order is None else weight[:, order], factor, settle, lazy)
    return Quantized(codes, scale, zero, grid)
