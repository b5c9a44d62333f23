"""Layers computed in float32, their weights stored as packed as the model has them."""

from __future__ import annotations

import numpy as np

from . import blocks
from .bits import gathered_codes, matrix_codes, stored_bits
from .graph import FLOAT, Graph, add_bias
from .weights import Coded, Dense, Layer


class FloatProducts:
    """Weights of 4 bits stay packed in memory (`MatMulNBits`); all others are widened when a session is opened."""

    note = "computed in float32"

    def linear(self, graph: Graph, x: str, rank: int, layer: Layer, out: str) -> str:
        """Add y = x W^T + b, named `out`."""
        packed = (
            blocks.blocks_of(layer.weight, 4) if isinstance(layer.weight, Coded) and layer.weight.bits == 4 else None
        )
        if packed is not None:
            blocks.matmul(graph, x, layer, packed, out, int8_activations=False)
            return "4-bit"
        turned = graph.node("Transpose", [matrix(graph, layer)], f"{layer.name}.weight_turned", perm=[1, 0])
        product = graph.node("MatMul", [x, turned], out if layer.bias is None else f"{out}_product")
        if layer.bias is not None:
            add_bias(graph, product, layer, out)
        return described(layer.weight)

    def table(self, graph: Graph, ids: str, rank: int, layer: Layer, out: str) -> str:
        """Add the rows of the table at `ids`, named `out`."""
        weight = layer.weight
        if isinstance(weight, Dense):
            graph.node("Gather", [matrix(graph, layer), ids], out, axis=0)
        elif weight.bits == 4 and (packed := blocks.blocks_of(weight, 4)) is not None:
            blocks.gather(graph, ids, layer, packed, out)
        else:
            _gather(graph, ids, rank, layer.name, weight, out)
        return described(weight)


def described(weight: Dense | Coded) -> str:
    """Return what the numbers of a weight are in the file."""
    return "float32" if isinstance(weight, Dense) else f"{stored_bits(weight)}-bit"


def matrix(graph: Graph, layer: Layer) -> str:
    """Add the weight in float32, (rows, columns), and return its name."""
    weight, name = layer.weight, layer.name
    if isinstance(weight, Dense):
        return graph.constant(f"{name}.weight", weight.values)
    wide = graph.node("Cast", [matrix_codes(graph, name, weight)], f"{name}.weight_float", to=FLOAT)
    return _scaled(graph, name, weight, wide, None, list(weight.shape), f"{name}.weight")


def _gather(graph: Graph, ids: str, rank: int, name: str, weight: Coded, out: str) -> None:
    codes = gathered_codes(graph, name, weight, ids, rank, out)
    _scaled(graph, name, weight, codes, ids, [0] * rank + [weight.shape[1]], out)


def _scaled(graph: Graph, name: str, weight: Coded, codes: str, ids: str | None, shape: list[int], out: str) -> str:
    """Add (codes - zero) * scale in `shape`; `ids` picks the rows the codes are of."""
    grouped = weight.groups > 1
    if grouped:
        split = graph.constant(f"{out}_groups", [*shape[:-1], weight.groups, -1], np.int64)
        codes = graph.node("Reshape", [codes, split], f"{out}_grouped")
    for part, op, values in (("zero", "Sub", weight.zero), ("scale", "Mul", weight.scale)):
        if values is None:
            continue
        operand = graph.constant(f"{name}.{part}", values[:, :, None] if grouped else values, np.float32)
        if ids is not None:
            operand = graph.node("Gather", [operand, ids], f"{out}_{part}", axis=0)
        last = part == "scale" and not grouped
        codes = graph.node(op, [codes, operand], out if last else f"{out}_{op.lower()}")
    if grouped:
        graph.node("Reshape", [codes, graph.constant(f"{out}_shape", shape, np.int64)], out)
    return out
