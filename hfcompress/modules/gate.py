"""Training-time gates on a weight: columns of heads or units, or blocks of any size, that may still come back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.straight_through import straight_through


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

    @torch.no_grad()
    def begin_(self, weight: Tensor, least: float = 0.0) -> None:
        """Let scores begin at the root mean square of a group's weights, over the mean of all groups, above `least`."""
        sizes = weight.float().square().mean(0).view(-1, self.size).mean(1).sqrt()
        self.scores.copy_(least + sizes / sizes.mean())


class BlockGate(nn.Module):
    """Parametrization W' = W * m with one m in {0, 1} and one trainable score per `rows` x `columns` block of W.

    Blocks of 1 x 1 are the single weights of Sanh 2020; larger ones the blocks of Lagunas 2021, section 3.1. Blocks at
    the lower and right edge may be smaller.
    """

    mask: Tensor

    def __init__(self, shape: tuple[int, int], rows: int = 1, columns: int = 1) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        grid = (-(-shape[0] // rows), -(-shape[1] // columns))
        self.scores = nn.Parameter(torch.zeros(grid))
        self.register_buffer("mask", torch.ones(grid, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` (out, in) with the weights of closed blocks at zero."""
        gate = straight_through(self.mask, self.scores)
        return weight * self.expand(gate, weight.shape).to(weight.dtype)

    @torch.no_grad()
    def begin_(self, weight: Tensor, least: float = 0.0) -> None:
        """Let scores begin at the root mean square of a block's weights, over the mean of all blocks, above `least`."""
        squares = weight.float().square()[None, None]
        block = (self.rows, self.columns)
        sizes = F.avg_pool2d(squares, block, ceil_mode=True, count_include_pad=False)[0, 0].sqrt()
        self.scores.copy_(least + sizes / sizes.mean())

    def expand(self, grid: Tensor, shape: torch.Size) -> Tensor:
        """Return a value per block as a value per weight of a matrix of `shape`."""
        if self.rows > 1:
            grid = grid.repeat_interleave(self.rows, 0)[: shape[0]]
        return grid.repeat_interleave(self.columns, 1)[:, : shape[1]] if self.columns > 1 else grid
