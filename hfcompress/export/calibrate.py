"""Grids for the inputs of layers that the checkpoint has none for, from examples.

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
from .lower_int8 import rounded
from .runtime import given
from .trace import LINEAR, Traced
from .weights import Coded, Inputs, Layer

BITS = 8
Batch = Mapping[str, np.ndarray]


def open_layers(traced: Traced) -> list[str]:
    """Return the layers that a calibration has to give grids: none where the checkpoint has grids of its own.

    They are those whose products can be ones of integers: a row of the weight has one scale.
    """
    stands = _stands(traced)
    if any(layer.inputs is not None for layer in traced.layers.values()):
        return []
    return [path for path, layer in traced.layers.items() if path in stands and _fits(layer)]


def calibrated(traced: Traced, batches: Iterable[Batch]) -> Traced:
    """Return the same with a grid for the inputs of every open layer: the span of least squared error of those seen.

    Raises ExportError when `batches` is empty.
    """
    paths = open_layers(traced)
    ranges = {path: InputRange(traced.layers[path].weight.shape[1], torch.device("cpu")) for path in paths}
    stands = _stands(traced)
    handles = [stands[path].register_forward_pre_hook(_observing(ranges[path])) for path in paths]
    try:
        with torch.inference_mode():
            for batch in batches:
                traced.plain(*(torch.from_numpy(given(name, batch)) for name in traced.spec.names))
    finally:
        for handle in handles:
            handle.remove()
    seen = {path: found for path, found in ranges.items() if found.sample}
    if paths and not seen:
        raise ExportError("no calibration example was given: activations cannot be rounded on a fixed grid")
    layers = {path: _with_grid(layer, seen.get(path)) for path, layer in traced.layers.items()}
    return replace(traced, layers=layers)


def _with_grid(layer: Layer, seen: InputRange | None) -> Layer:
    if seen is None:
        return layer
    step, zero = input_grid(seen, torch.ones(1), BITS, search=True)
    return replace(layer, inputs=Inputs(float(step), zero, BITS))


def _fits(layer: Layer) -> bool:
    weight = rounded(layer.weight)
    return isinstance(weight, Coded) and weight.groups == 1


def _stands(traced: Traced) -> dict[str, Any]:
    found: list[Any] = [module for module in traced.plain.modules() if getattr(module, "op", None) == LINEAR]
    return {stand.path: stand for stand in found}


def _observing(seen: InputRange) -> Any:
    def hook(_: Any, args: tuple[Tensor, ...]) -> None:
        seen.add(args[0].flatten(0, -2))

    return hook
