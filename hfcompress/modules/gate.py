"""A training-time gate on groups of a weight's columns: heads or units that may still come back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.losses import straight_through


class ColumnGate(nn.Module):
    """Parametrization W' = W * m with one m in {0, 1} per group of `size` columns, and a trainable score per group.

    The mask is the forward value and the score takes its gradient unchanged, so dL/dscore is the sum of dL/dW' * W
    over the group: the score of movement pruning (Sanh 2020, eq. 6), for a group as in Lagunas 2021, section 3.
    """

    mask: Tensor

    def __init__(self, groups: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.scores = nn.Parameter(torch.zeros(groups))
        self.register_buffer("mask", torch.ones(groups, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` (out, groups * size) with the columns of closed groups at zero."""
        gate = straight_through(self.mask, self.scores)
        return weight * gate.repeat_interleave(self.size).to(weight.dtype)
