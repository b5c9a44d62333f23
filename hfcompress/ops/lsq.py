"""Learned step sizes: rounding whose scale is trained along with what is rounded."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def lsq(values: Tensor, step: Tensor, low: int, high: int, count: int) -> Tensor:
    """Return `values` rounded to multiples of `step` within [low, high] * step (LSQ, Esser 2020, eqs. 1 and 2).

    step: float32, broadcast against `values`; products are taken in the dtype of `values`, as a packed layer takes
    them. The gradient to `values` passes straight through inside the range and is zero outside; that to `step` is
    eq. 3, scaled by 1 / sqrt(count * high) with `count` the number of values that share a step (section 2.2).
    """
    return _LSQ.apply(values, step, low, high, 1.0 / math.sqrt(count * high))


class _LSQ(torch.autograd.Function):
    """Written out: autograd would keep, and pass over, four tensors of the size of `values` where one will do."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, low: int, high: int, factor: float) -> Tensor:
        codes = values / step
        ctx.save_for_backward(codes, step)
        ctx.limits, ctx.factor = (low, high), factor
        return codes.clamp(low, high).round_().to(values.dtype).mul_(step.to(values.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        codes, step = ctx.saved_tensors
        low, high = ctx.limits
        inside = (codes >= low) & (codes <= high)
        to_values = gradients[0] * inside
        to_step = None
        if ctx.needs_input_grad[1]:
            slope = codes.clamp(low, high).round_().addcmul_(codes, inside.to(codes.dtype), value=-1)
            to_step = slope.mul_(gradients[0]).sum_to_size(step.shape).mul(ctx.factor)
        return to_values, to_step, None, None, None
