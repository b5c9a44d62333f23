"""ONNX Runtime's own block-wise layers: `MatMulNBits` and `GatherBlockQuantized`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bits import fold
from .graph import CONTRIB, Graph
from .weights import Array, Coded, Layer

SIZES = (256, 128, 64, 32, 16)  # numbers that share a scale
OVERHEAD = 1.08  # repeating a row's scale for every block may cost this much of the bytes


@dataclass(frozen=True)
class Blocks:
    """A weight in blocks along its columns: codes (rows, bytes), scale (rows, blocks), zero points (rows, bytes)."""

    bits: int
    size: int
    codes: Array
    scale: Array
    zero: Array | None


def blocks_of(weight: Coded, bits: int) -> Blocks | None:
    """Return `weight` as blocks of `bits` (4 or 8) per code, or None: they do not fit, or take too many bytes."""
    columns = weight.shape[1]
    span = columns // weight.groups
    size = next((s for s in SIZES if span % s == 0), None)
    if size is None or weight.bits > bits:
        return None
    count = columns // size
    if weight.groups < count and bits / 8 * columns + 4 * count > OVERHEAD * (bits / 8 * columns + 2 * weight.groups):
        return None
    shift = 2 ** (bits - 1)  # these operators store unsigned codes, with zero in the middle unless told
    codes = weight.codes.astype(np.int16) + shift
    zero = None
    if weight.zero is not None:
        zero = np.repeat(weight.zero.astype(np.int16) + shift, count // weight.groups, axis=1)
        zero = _folded(np.pad(zero, ((0, 0), (0, -count % (8 // bits)))), bits)
    return Blocks(bits, size, _folded(codes, bits), np.repeat(weight.scale, count // weight.groups, axis=1), zero)


def _folded(codes: Array, bits: int) -> Array:
    unsigned = codes.astype(np.uint8)
    return unsigned if bits == 8 else fold(unsigned, bits)


def matmul(graph: Graph, x: str, layer: Layer, blocks: Blocks, out: str, int8_activations: bool) -> None:
    """Add y = x W^T + b as one node; with `int8_activations` each block of x is rounded to int8 for the product."""
    rows, columns = layer.weight.shape
    name = layer.name
    packed = graph.constant(f"{name}.blocks", blocks.codes.reshape(rows, columns // blocks.size, -1))
    inputs = [x, packed, graph.constant(f"{name}.block_scale", blocks.scale)]
    if blocks.zero is not None:
        inputs.append(graph.constant(f"{name}.block_zero", blocks.zero))
    if layer.bias is not None:
        inputs += [""] * (5 - len(inputs)) + [graph.constant(f"{layer.path}.bias", layer.bias)]
    graph.node(
        "MatMulNBits",
        inputs,
        out,
        domain=CONTRIB,
        K=columns,
        N=rows,
        bits=blocks.bits,
        block_size=blocks.size,
        accuracy_level=4 if int8_activations else 1,
    )


def gather(graph: Graph, ids: str, layer: Layer, blocks: Blocks, out: str) -> None:
    """Add the rows at `ids` as one node."""
    name = layer.name
    inputs = [
        graph.constant(f"{name}.table_blocks", blocks.codes),
        ids,
        graph.constant(f"{name}.table_scale", blocks.scale),
    ]
    if blocks.zero is not None:
        inputs.append(graph.constant(f"{name}.table_zero", blocks.zero))
    graph.node(
        "GatherBlockQuantized",
        inputs,
        out,
        domain=CONTRIB,
        bits=blocks.bits,
        block_size=blocks.size,
        gather_axis=0,
        quantize_axis=1,
    )
