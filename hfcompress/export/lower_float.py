"""Layers computed in float32, their weights stored as packed as the model has them."""

from __future__ import annotations

import numpy as np

from . import blocks
from .bits import by_column, described, gathered, matrix_codes, matrix_values
from .graph import FLOAT, Graph, add_bias, add_convolution, as_kernel
from .weights import Coded, Dense, Inputs, Layer, Worded
from .words import worded_matrix, worded_rows


class FloatProducts:
    """Weights of 4 bits stay packed in memory (`MatMulNBits`); all others are widened when a session is opened."""

    note = "computed in float32"

    def linear(self, graph: Graph, x: str, rank: int, layer: Layer, out: str) -> str:
        """Add y = x W^T + b, named `out`."""
        x = x if layer.inputs is None else rounded_inputs(graph, x, layer.inputs)
        size = blocks.matmul_block(layer.weight) if isinstance(layer.weight, Coded) and layer.weight.bits == 4 else None
        if isinstance(layer.weight, Coded) and size:
            blocks.matmul(graph, x, layer, layer.weight, size, out, int8_activations=False)
        else:
            turned = graph.node("Transpose", [matrix(graph, layer)], f"{layer.name}/weight/turned", perm=[1, 0])
            product = graph.node("MatMul", [x, turned], out if layer.bias is None else f"{out}/product")
            if layer.bias is not None:
                add_bias(graph, product, layer, out)
        return described(layer.weight)

    def table(self, graph: Graph, ids: str, rank: int, layer: Layer, out: str) -> str:
        """Add the rows of the table at `ids`, named `out`."""
        weight = layer.weight
        if isinstance(weight, Dense):
            graph.node("Identity", [gathered(graph, layer.name, weight, ids, rank, out)], out)
        elif isinstance(weight, Worded):
            graph.node("Identity", [worded_rows(graph, layer.name, weight, ids, rank, out)], out)
        elif size := blocks.gather_block(weight):
            blocks.gather(graph, ids, layer.name, weight, size, out)
        else:
            _scaled(graph, layer.name, weight, gathered(graph, layer.name, weight, ids, rank, out), ids, out)
        return described(weight)

    def convolve(self, graph: Graph, x: str, layer: Layer, out: str) -> str:
        """Add a convolution of `x`, its bias and its bound, named `out`."""
        x = x if layer.inputs is None else _rounded_plainly(graph, x, layer.inputs)
        bias = "" if layer.bias is None else graph.constant(f"{layer.path}.bias", layer.bias)
        kernel = as_kernel(graph, matrix(graph, layer), layer, f"{layer.name}/kernel")
        add_convolution(graph, x, kernel, bias, layer, out)
        return described(layer.weight)


def rounded_inputs(graph: Graph, x: str, to: Inputs) -> str:
    """Add `x` on the grid `to`, as float32, and return its name; made once for all layers that read it so."""
    out = f"{x}/{to.bits}/{to.step}/{to.zero}"
    if to.bits < 8:
        low, high = (graph.constant(f"{out}/{n}", v, np.float32) for n, v in zip(("low", "high"), to.span, strict=True))
        x = graph.node("Clip", [x, low, high], f"{out}/clipped")
    step, zero = graph.constant(f"{out}/step", to.step, np.float32), graph.constant(f"{out}/zero", to.zero, np.uint8)
    codes = graph.node("QuantizeLinear", [x, step, zero], f"{out}/codes")
    return graph.node("DequantizeLinear", [codes, step, zero], f"{out}/values")


def _rounded_plainly(graph: Graph, x: str, to: Inputs) -> str:
    """Add `x` on the grid `to` by arithmetic: after a `DequantizeLinear` ONNX Runtime rounds a float kernel as well."""
    out = f"{x}/{to.bits}/{to.step}/{to.zero}/plain"
    step, low, high = (
        graph.constant(f"{out}/{name}", value, np.float32)
        for name, value in (("step", to.step), ("low", -to.zero), ("high", 2**to.bits - 1 - to.zero))
    )
    codes = graph.node("Round", [graph.node("Div", [x, step], f"{out}/parts")], f"{out}/round")
    return graph.node("Mul", [graph.node("Clip", [codes, low, high], f"{out}/codes"), step], f"{out}/values")


def matrix(graph: Graph, layer: Layer) -> str:
    """Add the weight in float32, (rows, columns), and return its name."""
    weight, name = layer.weight, layer.name
    if isinstance(weight, Dense):
        return matrix_values(graph, name, weight)
    if isinstance(weight, Worded):
        return worded_matrix(graph, name, weight)
    wide = graph.node("Cast", [matrix_codes(graph, name, weight)], f"{name}/weight/float", to=FLOAT)
    return _scaled(graph, name, weight, wide, "", f"{name}.weight")


def _scaled(graph: Graph, name: str, weight: Coded, codes: str, ids: str, out: str) -> str:
    """Add (codes - zero) * scale; `ids` says which rows the codes are of, "" that they are all."""
    if weight.zero is not None:
        zero = by_column(graph, f"{name}/zero", weight.zero, weight, ids, f"{out}/zero")
        codes = graph.node("Sub", [codes, zero], f"{out}/sub")
    scale = by_column(graph, f"{name}/scale", weight.scale, weight, ids, f"{out}/scale")
    return graph.node("Mul", [codes, scale], out)
