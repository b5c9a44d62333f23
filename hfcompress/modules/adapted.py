"""A layer with a low-rank adapter kept beside it: what merging would round, where the layer holds codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Adapted(nn.Module):
    """y = base(x) + up(down(x)); the adapter's scaling is in `up`.

    The empty `weight` is there for the same reasons as that of a packed layer: a loader that does not know the adapter
    must fail, not leave the base layer's weight at random.
    """

    def __init__(self, base: nn.Module, columns: int, rows: int, rank: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.base = base if dtype is None else base.to(dtype)
        self.down = nn.Linear(columns, rank, bias=False, dtype=dtype)
        self.up = nn.Linear(rank, rows, bias=False, dtype=dtype)
        self.rank = rank
        self.weight = nn.Parameter(torch.empty(rows, 0, dtype=dtype), requires_grad=False)

    @property
    def bias(self) -> Any:
        """The bias of the base layer, None where it has none."""
        return getattr(self.base, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        return self.base(x) + self.up(self.down(x.to(self.down.weight.dtype))).to(x.dtype)


class AdaptedLinear(Adapted):
    """An adapter beside a linear layer."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(nn.Linear(in_features, out_features, bias=bias), in_features, out_features, rank, dtype)
        self.in_features, self.out_features = in_features, out_features


class AdaptedConv1D(Adapted):
    """An adapter beside a layer that stands for transformers' Conv1D."""

    def __init__(self, nf: int, nx: int, rank: int, dtype: torch.dtype | None = None) -> None:
        super().__init__(Conv1D(nf, nx), nx, nf, rank, dtype)
        self.nf, self.nx, self.in_features, self.out_features = nf, nx, nx, nf
