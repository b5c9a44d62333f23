"""Learned step sizes: rounding whose scale is trained along with what is rounded."""

from __future__ import annotations

import math

from torch import Tensor


def lsq(values: Tensor, step: Tensor, low: int, high: int, count: int) -> Tensor:
    """Return `values` rounded to multiples of `step` within [low, high] * step (LSQ, Esser 2020, eqs. 1 and 2).

    step: broadcast against `values`. The gradient to `values` passes straight through inside the range and is zero
    outside; that to `step` is eq. 3, scaled by 1 / sqrt(count * high) with `count` the number of values that share a
    step (section 2.2).
    """
    step = _scaled_gradient(step, 1.0 / math.sqrt(count * high))
    codes = (values / step).clamp(low, high)
    return (codes + (codes.round() - codes).detach()) * step


def _scaled_gradient(values: Tensor, factor: float) -> Tensor:
    """Return `values`, whose gradient is `factor` times as large."""
    return values.detach() + (values - values.detach()) * factor
