"""Rounding of parameters inside of modules that compute in their own way, while they train: before they are packed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..ops.quantization import Clip, Grid
from .parametrizations import register
from .rounding import RoundedWeight


def round_(module: nn.Module, name: str, grid: Grid, clip: Clip) -> None:
    """Put the wrapper on a parameter that rounds it as packing it will, switched off."""
    register(module, name, RoundedWeight(grid, clip).to(getattr(module, name).device))


def roundings(module: nn.Module) -> Iterator[RoundedWeight]:
    """Yield the wrappers that `round_` has put on a module's parameters."""
    found: Any = module.parametrizations
    for wrappers in found.values():
        yield from (wrapper for wrapper in wrappers if isinstance(wrapper, RoundedWeight))
