"""Layers computed in int8: weights as the model stores them, activations rounded as they come."""

from __future__ import annotations

import numpy as np

from . import blocks
from .bits import matrix_codes, stored_bits
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
        weight = layer.weight
        if isinstance(weight, Dense) and weight.values.size < SMALL:
            return self._float.linear(graph, x, rank, layer, out)
        coded = coded8(weight.values) if isinstance(weight, Dense) else weight
        if coded.groups == 1:
            return self._integer(graph, x, layer, coded, out)
        packed = blocks.blocks_of(coded, 4 if coded.bits == 4 else 8) if coded.bits in (4, 8) else None
        if packed is None:
            return self._float.linear(graph, x, rank, layer, out) + " computed in float32"
        blocks.matmul(graph, x, layer, packed, out, int8_activations=True)
        return f"{coded.bits}-bit"

    def table(self, graph: Graph, ids: str, rank: int, layer: Layer, out: str) -> str:
        """Add the rows of the table at `ids`, named `out`."""
        if isinstance(layer.weight, Dense) and layer.weight.values.size >= SMALL:
            layer = Layer(layer.path, layer.name, True, coded8(layer.weight.values))
        return self._float.table(graph, ids, rank, layer, out)

    def _integer(self, graph: Graph, x: str, layer: Layer, weight: Coded, out: str) -> str:
        name, kind = layer.name, f"{stored_bits(weight)}-bit"
        if self.reduce_range:
            weight = halved(weight)
        rounded = f"{x}_int8"  # made once for all layers that read x
        scale_x, zero_x = f"{rounded}_scale", f"{rounded}_zero"
        graph.node("DynamicQuantizeLinear", [x], rounded, scale_x, zero_x)
        codes = graph.node("Transpose", [matrix_codes(graph, name, weight)], f"{name}.codes_turned", perm=[1, 0])
        zeros = np.zeros((), np.int8) if weight.zero is None else weight.zero[:, 0]
        zero = graph.constant(f"{name}.zero_int8", zeros, np.int8)
        product = graph.node("MatMulInteger", [rounded, codes, zero_x, zero], f"{out}_int32")
        wide = graph.node("Cast", [product], f"{out}_float", to=FLOAT)
        scale = graph.constant(f"{name}.scale_row", weight.scale[:, 0])
        both = graph.node("Mul", [scale_x, scale], f"{out}_scale")
        result = graph.node("Mul", [wide, both], out if layer.bias is None else f"{out}_product")
        if layer.bias is not None:
            add_bias(graph, result, layer, out)
        return kind
