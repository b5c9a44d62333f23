"""A gradient for what has none: that of something softer (Bengio 2013)."""

from __future__ import annotations

import torch
from torch import Tensor


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return `hard` in the forward pass while the gradient flows to `soft` unchanged (Bengio 2013)."""
    return _StraightThrough.apply(hard, soft)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.to(soft.dtype)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]
