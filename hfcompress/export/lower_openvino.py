"""A graph for OpenVINO to read: its weights are inputs, which `openvino.build` replaces by constants of few bits."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx import ModelProto, helper

from ..core.errors import ExportError
from ..ops.quantization import TERNARY
from .cpu import needs_reduced_range
from .graph import FLOAT, Graph, add_bias, add_convolution, lower
from .lower_float import rounded_inputs
from .notes import kind_of
from .trace import Traced
from .weights import SMALL, Coded, Dense, Layer, Worded, coded8, halved


@dataclass
class NamedWeights:
    """Products whose weights are known by name only.

    With `int8`, plain weights are rounded to 8 bits, and inputs without a grid are left for a calibration to give one
    where a row of the weight has one scale.
    """

    int8: bool = False
    reduce_range: bool = field(default_factory=needs_reduced_range)  # 7 bits: sums of two products fit 16 bits
    weights: dict[str, Dense | Coded] = field(default_factory=dict)  # by graph input
    products: list[tuple[str, bool]] = field(default_factory=list)  # of each layer: graph input, has a grid
    tables: set[str] = field(default_factory=set)  # graph inputs that rows are read of
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of graph inputs that are kernels

    @property
    def open(self) -> set[str]:
        """The weights whose products a calibration has to give grids: none where the checkpoint has some."""
        if not self.int8 or any(has_grid for _, has_grid in self.products):
            return set()
        return {name for name, _ in self.products if name not in self.tables and static(self.weights[name])}

    @property
    def note(self) -> str:
        """How the inputs of the layers are rounded."""
        fixed = sum(has_grid or name in self.open for name, has_grid in self.products)
        rest = [name for name, has_grid in self.products if not (has_grid or name in self.open or name in self.shapes)]
        others = [name for name in rest if isinstance(self.weights[name], Coded)]
        dynamic = len(others) if self.int8 else 0
        used = [f"{kind} ({count})" for kind, count in (("static", fixed), ("dynamic", dynamic)) if count]
        return f"activations int8, {', '.join(used)}" if used else "computed in float32"

    def linear(self, graph: Graph, x: str, rank: int, layer: Layer, out: str) -> str:
        """Add y = x W^T + b, named `out`."""
        x = x if layer.inputs is None else rounded_inputs(graph, x, layer.inputs)
        name = self._input(layer)
        self.products.append((name, layer.inputs is not None))
        turned = graph.node("Transpose", [name], f"{name}/turned", perm=[1, 0])
        product = graph.node("MatMul", [x, turned], out if layer.bias is None else f"{out}/product")
        if layer.bias is not None:
            add_bias(graph, product, layer, out)
        return stored(self.weights[name])

    def convolve(self, graph: Graph, x: str, layer: Layer, out: str) -> str:
        """Add a convolution of `x`, its bias and its bound, named `out`."""
        x = x if layer.inputs is None else rounded_inputs(graph, x, layer.inputs)
        name = self._input(layer)
        self.products.append((name, layer.inputs is not None))
        self.shapes[name] = layer.convolution.shape if layer.convolution else ()
        bias = "" if layer.bias is None else graph.constant(f"{layer.path}.bias", layer.bias)
        add_convolution(graph, x, name, bias, layer, out)
        return stored(self.weights[name]) + (
            " computed in float32" if self.int8 and not static(self.weights[name]) else ""
        )

    def table(self, graph: Graph, ids: str, rank: int, layer: Layer, out: str) -> str:
        """Add the rows of the table at `ids`, named `out`."""
        name = self._input(layer)
        self.tables.add(name)
        graph.node("Gather", [name, ids], out, axis=0)
        return stored(self.weights[name])

    def _input(self, layer: Layer) -> str:
        name = f"{layer.name}/weight"
        if name in self.weights:  # of a layer that shares it
            return name
        plain = layer.weight
        if isinstance(plain, Worded):
            raise ExportError(f"{layer.path}: OpenVINO has no form of weights that share codewords; use ONNX Runtime")
        if self.int8 and isinstance(plain, Dense) and (layer.convolution or plain.values.size >= SMALL):
            plain = coded8(plain.values)
        integers = not layer.is_table and (self.int8 or layer.inputs is not None)
        if self.reduce_range and integers and isinstance(plain, Coded) and static(plain):
            plain = halved(plain)
        self.weights[name] = plain
        return name


def lower_named(traced: Traced, how: NamedWeights) -> ModelProto:
    """Return a graph whose weights are further inputs, float32 (rows, columns), or of a kernel's four dimensions."""
    proto = lower(traced, how)
    for name, weight in how.weights.items():
        proto.graph.input.append(helper.make_tensor_value_info(name, FLOAT, how.shapes.get(name, weight.shape)))
    return proto


def static(weight: Dense | Coded) -> bool:
    """Say whether a product with this weight can be one of integers: 8 bits, and one scale for a row."""
    return isinstance(weight, Coded) and weight.groups == 1 and stored_bits(weight) == 8


def stored_bits(weight: Coded) -> int:
    """Return the bits of a code in an OpenVINO file, which knows 4 and 8."""
    return 4 if weight.bits <= 4 else 8  # `weights.TERNARY` is 0


def stored(weight: Dense | Coded) -> str:
    """Return what the numbers of a weight are in the file; none are left out there."""
    if isinstance(weight, Dense):
        return "float32"
    bits = stored_bits(weight)
    own = kind_of(weight.bits or TERNARY, sparse=weight.mask is not None)
    return own if own == kind_of(bits, sparse=False) else f"{own} in {bits}"
