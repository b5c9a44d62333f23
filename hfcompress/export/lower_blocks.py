"""Weights alone in few bits, of any model: the products are of floats, over blocks that ONNX Runtime keeps packed."""

from __future__ import annotations

from dataclasses import replace

from . import blocks
from .bits import described
from .graph import Graph
from .lower_float import FloatProducts, rounded_inputs
from .weights import SMALL, Coded, Dense, Layer, Weight, Worded, coded4, coded8

GROUP = 32  # columns that share a scale in 4 bits


class BlockProducts:
    """`MatMulNBits` and `GatherBlockQuantized` with weights of at most `bits` bits, activations in float32.

    What a checkpoint stores in so few bits keeps its codes; all else is rounded to nearest: 8 bits with a scale per
    row, as the int8 engine's, 4 bits with a scale and a zero point per 32 columns, which is what ONNX Runtime's own
    `DefaultWeightOnlyQuantizer` does (the same error to 0.01 dB), and here tied, masked and packed layers share it.
    Codebooks, convolutions and weights of few numbers stay as they are.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._float = FloatProducts()

    @property
    def note(self) -> str:
        """What the layers are computed in."""
        return self._float.note

    def linear(self, graph: Graph, x: str, rank: int, layer: Layer, out: str) -> str:
        """Add y = x W^T + b, named `out`."""
        weight = self.rounded(layer.weight)
        size = blocks.matmul_block(weight) if isinstance(weight, Coded) else None
        if not isinstance(weight, Coded) or size is None:
            return self._float.linear(graph, x, rank, replace(layer, weight=weight), out)
        x = x if layer.inputs is None else rounded_inputs(graph, x, layer.inputs)
        blocks.matmul(graph, x, layer, weight, size, out, int8_activations=False)
        return described(weight)

    def table(self, graph: Graph, ids: str, rank: int, layer: Layer, out: str) -> str:
        """Add the rows of the table at `ids`, named `out`."""
        return self._float.table(graph, ids, rank, replace(layer, weight=self.rounded(layer.weight)), out)

    def convolve(self, graph: Graph, x: str, layer: Layer, out: str) -> str:
        """Add a convolution of `x` with the kernel as the model stores it: there is no operator for a packed one."""
        return self._float.convolve(graph, x, layer, out)

    def rounded(self, weight: Weight) -> Weight:
        """Return a weight in at most `bits` bits, unless it is small or on a codebook."""
        if isinstance(weight, Worded) or weight.shape[0] * weight.shape[1] < SMALL:
            return weight
        if isinstance(weight, Coded):
            return weight if weight.bits <= self.bits else self._coded(weight)
        return self._coded(weight)

    def _coded(self, weight: Coded | Dense) -> Coded:
        values = weight.widened() if isinstance(weight, Coded) else weight.values
        found = coded8(values) if self.bits == 8 else coded4(values, GROUP)
        return replace(found, mask=weight.mask)
