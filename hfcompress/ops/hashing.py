"""Two small tables in place of a large one: rows by quotient and remainder of the index (Shi 2020)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Combine = Literal["add", "multiply"]
_ROUNDS = 30


@torch.no_grad()
def fit_tables(table: Tensor, buckets: int, combine: Combine) -> tuple[Tensor, Tensor]:
    """Return (quotients, remainders), (ceil(rows / buckets), columns) and (buckets, columns), of least squares.

    Row i of `table` (rows, columns) is approximated by quotients[i // buckets] + remainders[i % buckets], or their
    product; found by solving for one table and the other in turn, each of which is a mean.
    """
    rows, columns = table.shape
    height = math.ceil(rows / buckets)
    padded = torch.nn.functional.pad(table.float(), (0, 0, 0, height * buckets - rows)).view(height, buckets, columns)
    there = (torch.arange(height * buckets, device=table.device) < rows).view(height, buckets, 1).float()
    if combine == "add":
        quotient, remainder = table.new_zeros(height, columns).float(), table.new_zeros(buckets, columns).float()
        for _ in range(_ROUNDS):
            quotient = ((padded - remainder) * there).sum(1) / there.sum(1).clamp(min=1)
            remainder = ((padded - quotient[:, None]) * there).sum(0) / there.sum(0).clamp(min=1)
        return quotient, remainder
    quotient, remainder = (padded * there).sum(1) / there.sum(1).clamp(min=1), torch.ones_like(padded[0])
    for _ in range(_ROUNDS):
        remainder = _ratio(padded * quotient[:, None], quotient[:, None].square() * there, 0)
        quotient = _ratio(padded * remainder, remainder.square() * there, 1)
    scale = (remainder.square().mean(0) / quotient.square().mean(0).clamp(min=1e-20)).clamp(min=1e-20) ** 0.25
    return quotient * scale, remainder / scale  # the same product, in numbers of one size


def _ratio(products: Tensor, squares: Tensor, dim: int) -> Tensor:
    return products.sum(dim) / squares.sum(dim).clamp(min=1e-20)
