"""Layers computed in int8: weights as the model stores them, activations rounded as they come."""

from __future__ import annotations

import numpy as np

from . import blocks
from .bits import described, matrix_codes
from .graph import FLOAT, Graph, add_bias
from .lower_float import FloatProducts
from .weights import SMALL, Coded, Dense, Layer, coded8, halved


class DynamicInt8:
    """`MatMulInteger` where a row has one scale, `MatMulNBits` with int8 activations where it has several.

    Plain weights are rounded to 8 bits. With `reduce_range` 8-bit codes are kept to 7 bits, so that the sum of two
    products fits the 16 bits in which x86 without VNNI adds them.
    """

    note = "activations int8 (dynamic)"

    def __init__(self, reduce_range: bool) -> None:
        self.reduce_range = reduce_range
        self._float = FloatProducts()

    def linear(self, graph: Graph, x: str, rank: int, layer: Layer, out: str) -> str:
        """Add y = x W^T + b, named `out`."""
        weight = rounded(layer.weight)
        if isinstance(weight, Dense):
            return self._float.linear(graph, x, rank, layer, out)
        if weight.groups == 1:
            self._integer(graph, x, layer, halved(weight) if self.reduce_range else weight, out)
        elif size := blocks.matmul_block(weight):
            blocks.matmul(graph, x, layer, weight, size, out, int8_activations=True)
        else:
            return self._float.linear(graph, x, rank, layer, out) + " computed in float32"
        return described(weight)

    def table(self, graph: Graph, ids: str, rank: int, layer: Layer, out: str) -> str:
        """Add the rows of the table at `ids`, named `out`."""
        return self._float.table(graph, ids, rank, Layer(layer.path, layer.name, True, rounded(layer.weight)), out)

    def kernel(self, graph: Graph, layer: Layer, out: str) -> str:
        """Add a convolution's weight: integer convolution is slower than float on CPUs, and a ViT has one small one."""
        return self._float.kernel(graph, layer, out) + " computed in float32"

    def _integer(self, graph: Graph, x: str, layer: Layer, weight: Coded, out: str) -> None:
        rounded_x = f"{x}/int8"  # made once for all layers that read x
        scale_x, zero_x = f"{rounded_x}/scale", f"{rounded_x}/zero"
        graph.node("DynamicQuantizeLinear", [x], rounded_x, scale_x, zero_x)
        integer_product(graph, (rounded_x, scale_x, zero_x), layer, weight, out)


def rounded(weight: Dense | Coded) -> Dense | Coded:
    """Return a plain weight in 8 bits, unless it is small or without its zeros, and any other as it is."""
    if isinstance(weight, Coded) or weight.values.size < SMALL or weight.mask is not None:
        return weight
    return coded8(weight.values)


def integer_product(graph: Graph, x: tuple[str, str, str], layer: Layer, weight: Coded, out: str) -> None:
    """Add y = x W^T + b from x as (uint8 codes, scale, zero point), with the weight's codes in int8."""
    name = layer.name
    codes = graph.node("Transpose", [matrix_codes(graph, name, weight)], f"{name}/codes/turned", perm=[1, 0])
    zero = graph.constant(f"{name}/zero_row", 0 if weight.zero is None else weight.zero[:, 0], np.int8)
    product = graph.node("MatMulInteger", [x[0], codes, x[2], zero], f"{out}/int32")
    wide = graph.node("Cast", [product], f"{out}/float", to=FLOAT)
    scale = graph.constant(f"{name}/scale_row", weight.scale[:, 0])
    both = graph.node("Mul", [x[1], scale], f"{out}/scale")
    result = graph.node("Mul", [wide, both], out if layer.bias is None else f"{out}/product")
    if layer.bias is not None:
        add_bias(graph, result, layer, out)
