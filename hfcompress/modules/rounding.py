"""A training-time stand-in for a packed weight: float storage, but the values the packed layer will compute with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..core.foreign_internals import version_of
from ..ops.quantization import Clip, Grid, quantize
from ..ops.straight_through import straight_through
from .storage import Packed

_EXPERTS = 3  # dimensions of the weights of experts (experts, rows, columns); a kernel has four


class RoundedWeight(nn.Module):
    """Parametrization W' = dequantize(quantize(W)) once switched `on`; the gradient passes straight through."""

    on: Tensor
    mask: Tensor | None

    def __init__(
        self, grid: Grid | None = None, clip: Clip = "max", *, transposed: bool = False, mask: Tensor | None = None
    ) -> None:
        """Take the grid (default 8 bits), and how the weight lies: transposed, or the values where `mask` is True."""
        super().__init__()
        self.grid, self.clip, self.transposed = grid or Grid(), clip, transposed
        self.register_buffer("on", torch.zeros((), dtype=torch.bool))
        self.register_buffer("mask", mask, persistent=False)
        self._last: tuple[Tensor, int, Tensor] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight`, in the layer's own shape, on its grid when switched on."""
        if not self.on:
            return weight
        return straight_through(self._rounded(weight), weight)

    @torch.no_grad()
    def _rounded(self, weight: Tensor) -> Tensor:
        """Fit and round; in evaluation the result is kept while the weight is the same, as a fit may be a search."""
        if self.training or weight.is_inference():
            self._last = None
            return self._round(weight)
        if self._last is None or not _unchanged(self._last, weight):
            self._last = (weight.detach(), version_of(weight), self._round(weight))
        return self._last[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}  # a copy makes its own

    def _round(self, weight: Tensor) -> Tensor:
        matrix = weight
        if self.mask is not None:
            matrix = weight.new_zeros(self.mask.shape).masked_scatter(self.mask, weight)
        elif self.transposed:
            matrix = weight.T
        rows = matrix.flatten(0, 1) if matrix.ndim == _EXPERTS else matrix.flatten(1)
        rounded = quantize(rows, self.grid, self.clip).dequantize(weight.dtype)
        if self.mask is not None:
            return rounded[self.mask]
        return (rounded.T if self.transposed else rounded).reshape(weight.shape)


def rounding_for(module: nn.Module, grid: Grid, clip: Clip = "max") -> RoundedWeight:
    """Return the wrapper that rounds the weight of `module` as packing it will."""
    if isinstance(module, Packed):
        return RoundedWeight(grid, clip, mask=module.mask())
    return RoundedWeight(grid, clip, transposed=isinstance(module, Conv1D))


def _unchanged(last: tuple[Tensor, int, Tensor], weight: Tensor) -> bool:
    seen, version, _ = last
    return version_of(seen) == version and seen.dtype == weight.dtype and torch.equal(seen, weight)
