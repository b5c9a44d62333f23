"""Training wrapper of quantization-aware training: weights and inputs of a layer on grids whose steps are learnt."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..ops.lsq import lsq
from ..ops.quantization import SCALE_DTYPE, Grid, Quantized, encode, fit, spread
from ..ops.straight_through import straight_through

_TINY = 2.0**-120
_MOMENTUM = 0.9  # of the range of inputs, followed until rounding starts


class LearnedSteps(nn.Module):
    """Parametrization W' = LSQ(W) once switched `on`, with a trained step per row, group or tensor as `grid` says.

    The step used is the 16-bit one that will be stored. `input_bits` (None: inputs stay float): the layer's inputs go
    through `round_inputs`, with one trained step and a zero point fixed when rounding starts (LSQ+, Bhalgat 2020, with
    the offset of its initialization).
    """

    on: Tensor
    low: Tensor
    high: Tensor
    input_zero: Tensor

    def __init__(self, weight: Tensor, grid: Grid, input_bits: int | None = None) -> None:
        super().__init__()
        self.grid, self.input_bits = grid, input_bits
        self.step = nn.Parameter(torch.ones(grid.shape(*weight.shape)))
        self.input_step = nn.Parameter(torch.ones(1))
        self.register_buffer("on", torch.zeros((), dtype=torch.bool))
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("input_zero", torch.zeros(()))

    @property
    def rounds_inputs(self) -> bool:
        """Say whether inputs are rounded: that takes a grid for them and having seen some."""
        return self.input_bits is not None and bool(self.high > self.low)

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Switch rounding on, with the steps of least squared error for `weight` (rows, columns) as it is now."""
        scale, _ = fit(weight, self.grid, "mse")
        self.step.copy_(scale.float())
        if self.input_bits is not None and dist.is_available() and dist.is_initialized():  # each process saw its own
            dist.all_reduce(self.low, dist.ReduceOp.MIN)
            dist.all_reduce(self.high, dist.ReduceOp.MAX)
        if self.rounds_inputs:
            self.input_step.copy_((self.high - self.low) / self._last)
            self.input_zero.copy_((-self.low / self.used(self.input_step)).round().clamp(0, self._last).squeeze())
        self.on.fill_(True)

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` (rows, …), on its grid when switched on."""
        if not self.on:
            return weight
        values, step = weight.flatten(1), self.used(self.step)
        size = self.grid.group_size
        if size is not None and values.shape[1] % size == 0:  # whole groups: no copy of a step for each weight
            values, step = values.unflatten(1, (-1, size)), step.unsqueeze(-1)
        else:
            step = spread(step, values.shape[1], self.grid)
        count = weight.numel() // self.step.numel()
        return lsq(values, step, -self.grid.last, self.grid.last, count).view_as(weight)

    def round_inputs(self, x: Tensor) -> Tensor:
        """Return the layer's inputs on their grid when switched on; before that, follow their range while training."""
        if self.input_bits is None:
            return x
        if not self.on:
            if self.training:
                self._follow(x)
            return x
        if not self.rounds_inputs:
            return x
        zero = int(self.input_zero)
        return lsq(x, self.used(self.input_step), -zero, self._last - zero, x.numel())

    def quantized(self, weight: Tensor) -> Quantized:
        """Return `weight` (rows, columns) as it is to be stored: the codes that `forward` computes with."""
        scale = self.used(self.step).detach().to(SCALE_DTYPE)
        return Quantized(encode(weight, scale, None, self.grid), scale, None, self.grid)

    @staticmethod
    def used(step: Tensor) -> Tensor:
        """Return the step as it is stored, in 16 bits and positive; the gradient passes straight through."""
        return straight_through(step.detach().abs().clamp(min=_TINY).to(SCALE_DTYPE), step)

    @property
    def _last(self) -> int:
        return 2 ** (self.input_bits or 8) - 1

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        low, high = x.min().clamp(max=0).float(), x.max().clamp(min=0).float()
        seen = self.high > self.low
        self.low.copy_(torch.where(seen, self.low * _MOMENTUM + low * (1 - _MOMENTUM), low))
        self.high.copy_(torch.where(seen, self.high * _MOMENTUM + high * (1 - _MOMENTUM), high))
