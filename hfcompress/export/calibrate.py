"""Grids for what layers read, and convolutions give, where the checkpoint has none, from examples.

The layers are observed in the float copy that was traced: what they need is a step and a zero point each, while a
calibrator of ONNX Runtime would run a float file with an output per tensor, and round weights that are packed already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ExportError
from ..ops.smoothing import InputRange, input_grid
from .lower_int8 import integer_kernel, rounded, rounded_kernel
from .opening import given
from .trace import CONVOLUTION, LINEAR, Traced
from .weights import Coded, Inputs, Layer

BITS = 8
Batch = Mapping[str, np.ndarray]


def open_layers(traced: Traced) -> list[str]:
    """Return the layers that a calibration has to give grids.

    They are those whose products can be ones of integers: a row of the weight has one scale. Where the checkpoint has
    grids of its own, only convolutions that read on one are left, which want another for what they give.
    """
    stands = _stands(traced)
    fitting = [path for path, layer in traced.layers.items() if path in stands and _fits(layer)]
    if not has_grids(traced):
        return fitting
    half = (path for path in fitting if traced.layers[path].inputs and traced.layers[path].convolution)
    return [path for path in half if traced.layers[path].outputs is None]


def has_grids(traced: Traced) -> bool:
    """Say whether the checkpoint has grids of its own: what they leave open can be computed in floats."""
    return any(layer.inputs is not None for layer in traced.layers.values())


def calibrated(traced: Traced, batches: Iterable[Batch]) -> Traced:
    """Return the same with the grids that open layers lack: those of least squared error for what was seen.

    Without examples what the checkpoint has is left as it is; ExportError where that is nothing.
    """
    paths = open_layers(traced)
    stands = _stands(traced)
    axes = {path: -1 if traced.layers[path].convolution is None else 1 for path in paths}
    ranges, outputs = ({path: _Observed(axis) for path, axis in axes.items()} for _ in range(2))
    handles = [stands[path].register_forward_pre_hook(ranges[path].inputs) for path in paths]
    for path in (path for path in paths if traced.layers[path].convolution):
        handles.append(_last(traced, path, stands).register_forward_hook(outputs[path].output))
    try:
        with torch.inference_mode():
            for batch in batches:
                traced.plain(*(torch.from_numpy(given(name, batch)) for name in traced.spec.names))
    finally:
        for handle in handles:
            handle.remove()
    if paths and not any(ranges[path].range for path in paths):
        if has_grids(traced):
            return traced
        raise ExportError("no calibration example was given: activations cannot be rounded on a fixed grid")
    layers = dict(traced.layers)
    for path in paths:
        bound = layers[path].convolution.bound if layers[path].convolution else None  # type: ignore[union-attr]
        inputs = layers[path].inputs or ranges[path].grid()
        layers[path] = replace(layers[path], inputs=inputs, outputs=outputs[path].grid(bound))
    return replace(traced, layers=layers)


class _Observed:
    """What went into, or came out of, a layer."""

    def __init__(self, axis: int) -> None:
        self._axis = axis  # of the channels
        self.range: InputRange | None = None

    def inputs(self, _: Any, args: tuple[Tensor, ...]) -> None:
        """Note what a layer reads, as a hook before its call."""
        self._add(args[0].movedim(self._axis, -1))

    def output(self, _: Any, args: Any, made: Tensor) -> None:
        """Note what a layer gives, as a hook after its call."""
        self._add(made.movedim(self._axis, -1))

    def _add(self, x: Tensor) -> None:
        self.range = self.range or InputRange(x.shape[-1], x.device)
        self.range.add(x.flatten(0, -2))

    def grid(self, bound: tuple[float, float] | None = None) -> Inputs | None:
        """Return the grid of least squared error for what was seen, clipped to `bound`; None for nothing."""
        if self.range is None:
            return None
        if bound is not None:
            self.range = self.range.clipped(*bound)
        step, zero = input_grid(self.range, torch.ones(1), BITS, search=True)
        return _within(Inputs(float(step), zero, BITS), bound)


def _within(grid: Inputs, bound: tuple[float, float] | None) -> Inputs:
    """Return the grid with its top at the bound at most: only then does ONNX Runtime let it stand for the clipping."""
    if bound is None or grid.span[1] <= bound[1]:
        return grid
    return replace(grid, step=bound[1] / (2**grid.bits - 1 - grid.zero) * (1 - 1e-6))


def _last(traced: Traced, path: str, stands: dict[str, Any]) -> torch.nn.Module:
    """Return the module whose output is the convolution's: itself, or the norm that is folded into it."""
    convolution = traced.layers[path].convolution
    return traced.plain.get_submodule(convolution.last) if convolution and convolution.last else stands[path]


def _fits(layer: Layer) -> bool:
    if layer.convolution is not None:
        return integer_kernel(rounded_kernel(layer.weight))
    weight = rounded(layer.weight)
    return isinstance(weight, Coded) and weight.groups == 1


def _stands(traced: Traced) -> dict[str, Any]:
    kinds = (LINEAR, CONVOLUTION)
    found: list[Any] = [module for module in traced.plain.modules() if getattr(module, "op", None) in kinds]
    return {stand.path: stand for stand in found}
