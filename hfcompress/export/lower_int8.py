"""Layers computed in int8: weights as the model stores them, activations on its grids or rounded as they come."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np

from . import blocks
from .bits import described, matrix_codes
from .graph import FLOAT, INT8, Graph, add_bias, add_convolution, as_kernel
from .lower_float import FloatProducts, rounded_inputs
from .weights import SMALL, Array, Coded, Dense, Inputs, Layer, Weight, Worded, coded8, halved
from .words import worded_matrix

_MOST = 2.0**30  # steps of a bias; the products' sum is added to it
_TINY = 1e-30  # a scale: float32 holds it times that of an input


@dataclass(frozen=True)
class _Integers:
    """A weight that a product of integers reads: `codes` (rows, columns) lie in the graph, `name` is for the rest."""

    name: str
    codes: str
    weight: Coded | Worded

    @property
    def scale(self) -> Array:
        """The scale of each row, (rows,)."""
        return self.weight.scale[:, 0]  # type: ignore[index]


class Int8Products:
    """Layers whose inputs have a grid in the checkpoint: QDQ, which ONNX Runtime turns into integer products.

    Others round their inputs as they come: `MatMulInteger` where a row of the weight has one scale, `MatMulNBits` with
    int8 activations where it has several. Plain weights are rounded to 8 bits. With `reduce_range` 8-bit codes are kept
    to 7 bits, so that the sum of two products fits the 16 bits in which x86 without VNNI adds them.
    """

    def __init__(self, reduce_range: bool) -> None:
        self.reduce_range = reduce_range
        self._float = FloatProducts()
        self._layers = {"static": 0, "dynamic": 0}
        self._tables: set[str] = set()  # names of the weights that rows are looked up in
        self._on_grid: dict[str, Inputs] = {}  # by name, what a layer has put on a grid already

    @property
    def note(self) -> str:
        """How the inputs of the layers were rounded so far."""
        used = [f"{kind} ({count})" for kind, count in self._layers.items() if count]
        return f"activations int8, {', '.join(used)}" if used else "computed in float32"

    def linear(self, graph: Graph, x: str, rank: int, layer: Layer, out: str) -> str:
        """Add y = x W^T + b, named `out`."""
        weight = rounded(layer.weight)
        if isinstance(weight, Dense):
            return self._float.linear(graph, x, rank, layer, out)
        if isinstance(weight, Worded):
            return self._worded(graph, x, rank, layer, weight, out)
        if weight.groups > 1 and (layer.inputs or not blocks.matmul_block(weight)):
            return self._float.linear(graph, x, rank, layer, out) + " computed in float32"
        if size := blocks.matmul_block(weight) if weight.groups > 1 else None:
            self._layers["dynamic"] += 1
            blocks.matmul(graph, x, layer, weight, size, out, int8_activations=True)
            return described(weight)
        self._product(graph, x, layer, self._integers(graph, layer, weight), out)
        return described(weight)

    def _integers(self, graph: Graph, layer: Layer, weight: Coded) -> _Integers:
        """Add the codes of a weight, in 7 bits where asked: made of the full ones where a tied table holds those."""
        if not self.reduce_range or weight.bits < 8:
            return _Integers(layer.name, matrix_codes(graph, layer.name, weight), weight)
        name, half = f"{layer.name}/seven", halved(weight)
        if layer.name not in self._tables:  # making them takes longer than reading them
            return _Integers(name, matrix_codes(graph, name, half), half)
        return _Integers(name, _halved(graph, layer.name, weight, f"{name}/made"), half)

    def _product(self, graph: Graph, x: str, layer: Layer, matrix: _Integers, out: str) -> None:
        """Add y = x W^T + b, x on its grid or rounded by the range it has."""
        self._layers["static" if layer.inputs else "dynamic"] += 1
        if layer.inputs:
            _qdq_product(graph, self._rounded(graph, x, layer.inputs)[0], layer, matrix, out)
        else:
            _integer_product(graph, x, layer, matrix, out)

    def _rounded(self, graph: Graph, x: str, to: Inputs) -> tuple[str, Inputs]:
        """Add `x` on the grid `to` unless it is on one as coarse already; return its name and its grid."""
        if x in self._on_grid and self._on_grid[x].bits <= to.bits:
            return x, self._on_grid[x]
        return rounded_inputs(graph, x, to), to

    def _worded(self, graph: Graph, x: str, rank: int, layer: Layer, weight: Worded, out: str) -> str:
        """Add a layer on codebooks: the words are rounded to 8 bits, with the scale of their rows."""
        if weight.across > 1:
            return self._float.linear(graph, x, rank, layer, out) + " computed in float32"
        rounded8 = weight.rounded8(64 if self.reduce_range else 127)
        codes = worded_matrix(graph, layer.name, rounded8)
        self._product(graph, x, layer, _Integers(layer.name, codes, rounded8), out)
        return described(weight)

    def table(self, graph: Graph, ids: str, rank: int, layer: Layer, out: str) -> str:
        """Add the rows of the table at `ids`, named `out`."""
        self._tables.add(layer.name)
        return self._float.table(graph, ids, rank, Layer(layer.path, layer.name, True, rounded(layer.weight)), out)

    def convolve(self, graph: Graph, x: str, layer: Layer, out: str) -> str:
        """Add a convolution: of integers where its inputs and its output have grids, else of floats.

        Rounding its inputs as they come takes longer than the products save.
        """
        weight = rounded_kernel(layer.weight)
        if layer.inputs is None or layer.outputs is None or not integer_kernel(weight):
            return self._float.convolve(graph, x, replace(layer, weight=weight), out) + " computed in float32"
        self._layers["static"] += 1
        x, grid = self._rounded(graph, x, layer.inputs)
        name, weight = _with_room(layer, weight, grid.step)
        matrix = self._integers(graph, replace(layer, name=name), weight)
        kernel, bias = _qdq_kernel(graph, layer, matrix), _qdq_bias(graph, layer, matrix.scale * grid.step)
        made = add_convolution(graph, x, kernel, bias, _unbounded(layer, layer.outputs), f"{out}/product")
        graph.node("Identity", [rounded_inputs(graph, made, layer.outputs)], out)
        self._on_grid[out] = layer.outputs
        return described(weight)


def rounded(weight: Weight) -> Weight:
    """Return a plain weight in 8 bits, unless it is small, and any other as it is; zeros that are left out stay so."""
    if not isinstance(weight, Dense) or weight.values.size < SMALL:
        return weight
    return replace(coded8(weight.values), mask=weight.mask)


def rounded_kernel(weight: Weight) -> Weight:
    """Return a plain kernel in 8 bits, small or not: a float one amid integers would cost two conversions."""
    return replace(coded8(weight.values), mask=weight.mask) if isinstance(weight, Dense) else weight


def integer_kernel(weight: Weight) -> TypeGuard[Coded]:
    """Say whether a convolution with this weight can be one of integers: one scale a row, and zero is code zero."""
    return isinstance(weight, Coded) and weight.groups == 1 and weight.zero is None


def _with_room(layer: Layer, weight: Coded, step: float) -> tuple[str, Coded]:
    """Return name and weight with scales so large that a bias in steps of theirs and of the input's fits int32.

    The codes of a channel whose weights are as nothing beside its bias, as a norm that is switched off leaves them,
    are rounded anew, mostly to zeros.
    """
    if layer.bias is None:
        return layer.name, weight
    least = np.maximum(np.abs(layer.bias) / (_MOST * step), _TINY)[:, None].astype(np.float32)
    if (np.abs(weight.scale) >= least).all():
        return layer.name, weight
    scale = np.where(np.abs(weight.scale) < least, np.copysign(least, weight.scale), weight.scale)
    codes = np.rint(weight.codes * (weight.scale / scale)).astype(np.int8)
    bits, gap = (2, 1) if weight.step == 2 else (weight.bits, weight.step)  # of 1 bit: there is no zero
    name = f"{layer.path}/with_room"  # another layer of the same weight has a bias of its own
    return name, replace(weight, codes=codes, scale=scale, bits=bits, step=gap)


def _unbounded(layer: Layer, to: Inputs) -> Layer:
    """Return the layer without its bound where rounding to the grid `to` clips to it anyway."""
    how = layer.convolution
    if how is None or how.bound is None or to.span[0] < how.bound[0] or to.span[1] > how.bound[1]:
        return layer
    return replace(layer, convolution=replace(how, bound=None))


def _halved(graph: Graph, name: str, weight: Coded, out: str) -> str:
    """Add the codes of `weights.halved` as int8, made of the full ones when a session is opened."""
    half = graph.shared("half", 0.5, np.float32)
    values = graph.node("Cast", [matrix_codes(graph, name, weight)], f"{out}/float", to=FLOAT)
    zero = ""
    if weight.zero is not None:
        zero = graph.node("Cast", [graph.constant(f"{name}/zero", weight.zero)], f"{out}/zero", to=FLOAT)
        values = graph.node("Sub", [values, zero], f"{out}/centred")
        zero = graph.node("Round", [graph.node("Mul", [zero, half], f"{out}/zero/half")], f"{out}/zero/round")
    values = graph.node("Round", [graph.node("Mul", [values, half], f"{out}/half")], f"{out}/round")
    values = graph.node("Add", [values, zero], f"{out}/moved") if zero else values
    ends = [graph.shared(f"{end}_of_halved", value, np.float32) for end, value in (("low", -64), ("high", 64))]
    return graph.node("Cast", [graph.node("Clip", [values, *ends], f"{out}/clipped")], out, to=INT8)


def _qdq_kernel(graph: Graph, layer: Layer, matrix: _Integers) -> str:
    """Add a kernel of integers and its scale per channel."""
    codes = as_kernel(graph, matrix.codes, layer, f"{matrix.codes}/kernel")
    inputs = [codes, _scale(graph, matrix), _zero(graph, matrix, layer.weight.shape[0])]
    return graph.node("DequantizeLinear", inputs, f"{matrix.name}/kernel", axis=0)


def _qdq_bias(graph: Graph, layer: Layer, step: Array) -> str:
    """Add the bias on the grid of the products' sums, as ONNX Runtime's integer convolution wants it; "" for none."""
    if layer.bias is None:
        return ""
    scale = step.astype(np.float32)
    limits = np.iinfo(np.int32)
    codes = np.clip(np.rint(layer.bias / scale.astype(np.float64)), limits.min, limits.max)
    name = f"{layer.path}/bias"
    inputs = [
        graph.constant(f"{name}/codes", codes, np.int32),
        graph.constant(f"{name}/scale", scale),
        graph.constant(f"{name}/zero", np.zeros(len(codes)), np.int32),
    ]
    return graph.node("DequantizeLinear", inputs, f"{name}/values", axis=0)


def _integer_product(graph: Graph, x: str, layer: Layer, matrix: _Integers, out: str) -> None:
    """Add y = x W^T + b, x rounded to uint8 by the range it has."""
    codes_x = f"{x}/int8"  # x is rounded once for all layers that read it
    scale_x, zero_x = f"{codes_x}/scale", f"{codes_x}/zero"
    graph.node("DynamicQuantizeLinear", [x], codes_x, scale_x, zero_x)
    inputs = [codes_x, _turned(graph, matrix), zero_x, _zero(graph, matrix, 1)]
    wide = graph.node("Cast", [graph.node("MatMulInteger", inputs, f"{out}/int32")], f"{out}/float", to=FLOAT)
    both = graph.node("Mul", [scale_x, _scale(graph, matrix)], f"{out}/scale")
    result = graph.node("Mul", [wide, both], out if layer.bias is None else f"{out}/product")
    if layer.bias is not None:
        add_bias(graph, result, layer, out)


def _qdq_product(graph: Graph, x: str, layer: Layer, matrix: _Integers, out: str) -> None:
    """Add y = x W^T + b, x being on a grid already."""
    inputs = [_turned(graph, matrix), _scale(graph, matrix), _zero(graph, matrix, layer.weight.shape[0])]
    values = graph.node("DequantizeLinear", inputs, f"{matrix.name}/weight", axis=1)
    result = graph.node("MatMul", [x, values], out if layer.bias is None else f"{out}/product")
    if layer.bias is not None:
        add_bias(graph, result, layer, out)


def _turned(graph: Graph, matrix: _Integers) -> str:
    """Add the codes as int8 (columns, rows)."""
    return graph.node("Transpose", [matrix.codes], f"{matrix.codes}/turned", perm=[1, 0])


def _scale(graph: Graph, matrix: _Integers) -> str:
    return graph.constant(f"{matrix.name}/scale_row", matrix.scale)


def _zero(graph: Graph, matrix: _Integers, count: int) -> str:
    """Add the zero points of the rows, or `count` zeros."""
    zero = np.zeros(count) if matrix.weight.zero is None else matrix.weight.zero[:, 0]
    return graph.constant(f"{matrix.name}/zero_row/{len(zero)}", zero, np.int8)
