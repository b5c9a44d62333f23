"""A training-time stand-in for a packed weight: float storage, but the values the packed layer will compute with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.losses import straight_through
from ..ops.quantization import dequantize, quantize_symmetric


class RoundedWeight(nn.Module):
    """Parametrization W' = dequantize(quantize(W)) once switched `on`; the gradient passes straight through."""

    on: Tensor

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("on", torch.zeros((), dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` (rows, columns), on its 8-bit grid when switched on."""
        if not self.on:
            return weight
        return straight_through(dequantize(*quantize_symmetric(weight, self.bits), weight.dtype), weight)
