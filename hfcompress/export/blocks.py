"""ONNX Runtime's own block-wise layers, which keep the weight packed in memory: MatMulNBits, GatherBlockQuantized."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from .bits import fold, matrix_codes
from .graph import CONTRIB, FLOAT, Graph
from .weights import Array, Coded, Layer

SIZES = (256, 128, 64, 32, 16)  # numbers that share a scale
PADDING = 1.04  # times the columns that blocks may take at most


def matmul_block(weight: Coded) -> int | None:
    """Return the largest block size that `MatMulNBits` can take for this weight; None when it can't."""
    columns = weight.shape[1]
    span = weight.group_size if weight.groups > 1 and weight.group_size else 0
    sizes = [s for s in SIZES if span % s == 0 and math.ceil(columns / s) * s <= PADDING * columns]
    return sizes[0] if sizes else None


def gather_block(weight: Coded) -> int | None:
    """Return the block size for `GatherBlockQuantized`, which serves 4 bits, or None: rows are unfolded instead."""
    if weight.bits != 4 or weight.mask is not None or weight.shape[1] % 16:
        return None
    size = matmul_block(weight)
    return size if size and weight.shape[1] % size == 0 else None


def matmul(graph: Graph, x: str, layer: Layer, weight: Coded, size: int, out: str, *, int8_activations: bool) -> None:
    """Add y = x W^T + b as one node; with `int8_activations` each block of x is rounded to int8 for the product.

    4-bit codes stay in 4 bits; other ones take 8 in memory, whatever they take in the file.
    """
    rows, columns = weight.shape
    bits = 4 if weight.bits == 4 and weight.mask is None else 8
    shape = [rows, math.ceil(columns / size), size * bits // 8]
    codes = (_codes4 if bits == 4 else _codes8)(graph, layer.name, weight, size, shape)
    inputs = [x, codes, _scale(graph, layer.name, weight, size)]
    if weight.zero is not None:
        inputs.append(graph.constant(f"{layer.name}/block_zero", _zero(weight, size, bits)))
    if layer.bias is not None:
        inputs += [""] * (5 - len(inputs)) + [graph.constant(f"{layer.path}.bias", layer.bias)]
    level = 4 if int8_activations else 1
    sizes = {"K": columns, "N": rows, "bits": bits, "block_size": size, "accuracy_level": level}
    graph.node("MatMulNBits", inputs, out, domain=CONTRIB, **sizes)


def gather(graph: Graph, ids: str, name: str, weight: Coded, size: int, out: str) -> None:
    """Add the rows at `ids` as one node."""
    table = _codes4(graph, name, weight, size, [weight.shape[0], weight.shape[1] // 2])
    inputs = [table, ids, _scale(graph, name, weight, size)]
    if weight.zero is not None:
        inputs.append(graph.constant(f"{name}/block_zero", _zero(weight, size, 4)))
    how = {"bits": 4, "block_size": size, "gather_axis": 0, "quantize_axis": 1}
    graph.node("GatherBlockQuantized", inputs, out, domain=CONTRIB, **how)


def _unsigned(codes: Array, bits: int) -> Array:
    """Shift codes up: these operators store them unsigned, with zero in the middle unless told."""
    return (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)


def _codes4(graph: Graph, name: str, weight: Coded, size: int, shape: list[int]) -> str:
    """Add the codes in `shape`, from the bytes that `bits` stores too, so that a table tied to a layer adds none."""
    packed = graph.constant(f"{name}/codes/4", fold(_unsigned(weight.codes, 4), 4)[:, :, None])
    if missing := math.prod(shape[1:]) - (weight.shape[1] + 1) // 2:
        pads = graph.shared(f"byte_pads_{missing}", [0, 0, 0, 0, missing, 0], np.int64)
        packed = graph.node("Pad", [packed, pads], f"{name}/codes/padded")
    sizes = graph.constant(f"{name}/shape_{len(shape)}", shape, np.int64)
    return graph.node("Reshape", [packed, sizes], f"{name}/blocks_{len(shape)}")


def _codes8(graph: Graph, name: str, weight: Coded, size: int, shape: list[int]) -> str:
    """Add the codes in `shape`, made of what the file holds when a session is opened."""
    columns = weight.shape[1]
    wide = graph.node("Cast", [matrix_codes(graph, name, weight)], f"{name}/block_codes", to=FLOAT)
    middle = graph.shared("middle_of_byte", 128, np.float32)
    shifted = graph.node("Add", [wide, middle], f"{name}/block_shifted")
    if columns % size:
        pads = graph.shared(f"pads_{-columns % size}", [0, 0, 0, -columns % size], np.int64)
        shifted = graph.node("Pad", [shifted, pads], f"{name}/block_padded")
    parts = graph.node("Reshape", [shifted, graph.constant(f"{name}/shape_8", shape, np.int64)], f"{name}/block_parts")
    return graph.node("Cast", [parts], f"{name}/blocks8", to=TensorProto.UINT8)


def _scale(graph: Graph, name: str, weight: Coded, size: int) -> str:
    """Add the scales as float32 (rows, blocks), each repeated for the blocks of its group."""
    wide = graph.node("Cast", [graph.bfloat16(f"{name}/scale", weight.scale)], f"{name}/group_scale", to=FLOAT)
    groups = _groups(weight, size)
    index = graph.shared(f"groups_{weight.shape[1]}_{weight.group_size}_{size}", groups, np.int64)
    return graph.node("Gather", [wide, index], f"{name}/block_scale", axis=1)


def _zero(weight: Coded, size: int, bits: int) -> Array:
    """Return the zero points (rows, bytes), each repeated for the blocks of its group."""
    if weight.zero is None:
        raise ValueError("the weight has no zero points")
    zero = _unsigned(weight.zero[:, _groups(weight, size)], bits)
    return zero if bits == 8 else fold(zero, 4)


def _groups(weight: Coded, size: int) -> Array:
    """Return which group each block is in."""
    blocks = np.arange(math.ceil(weight.shape[1] / size))
    return blocks * size // weight.group_size if weight.groups > 1 and weight.group_size else 0 * blocks
