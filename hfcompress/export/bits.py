"""Codes of any width inside an ONNX file, which knows whole bytes only.

A code of b bits is cut into planes of 4, 2 and 1 bits; each plane is stored without a gap in bytes and unfolded by
shifts and masks. Of a matrix this is done once, when a session is opened (it folds constants); of a table it is done to
the rows looked up.
"""

from __future__ import annotations

import numpy as np

from .graph import FLOAT, INT8, Graph
from .weights import Array, Coded

MASK = {4: 15, 2: 3, 1: 1}


def planes(bits: int) -> list[int]:
    """Return the widths of the planes of a `bits`-wide code, the highest first: 6 is 4 + 2, 3 is 2 + 1."""
    return [width for width in (4, 2, 1) if bits & width]


def is_whole(weight: Coded) -> bool:
    """Say whether codes are stored as bytes: those of 8 bits, and rows that would not fill their last byte."""
    return weight.bits == 8 or any(weight.shape[1] % (8 // width) for width in planes(weight.bits))


def stored_bits(weight: Coded) -> int:
    """Return how many bits a code takes in the file."""
    return 8 if is_whole(weight) else weight.bits


def matrix_codes(graph: Graph, name: str, weight: Coded) -> str:
    """Add the codes as int8 (rows, columns) and return their name."""
    if is_whole(weight):
        return graph.constant(f"{name}.codes", weight.codes, np.int8)
    unsigned = _unfold(graph, name, weight, None, list(weight.shape))
    signed = _signed(graph, weight, unsigned, f"{name}.codes_float")
    return graph.node("Cast", [signed], f"{name}.codes", to=INT8)


def gathered_codes(graph: Graph, name: str, weight: Coded, ids: str, rank: int, out: str) -> str:
    """Add the codes of the rows at `ids`, of `rank` dimensions, as float32 (…, columns), and return their name."""
    if is_whole(weight):
        table = graph.constant(f"{name}.codes", weight.codes, np.int8)
        return graph.node(
            "Cast", [graph.node("Gather", [table, ids], f"{out}_codes", axis=0)], f"{out}_float", to=FLOAT
        )
    unsigned = _unfold(graph, name, weight, ids, [0] * rank + [weight.shape[1]], out)
    return _signed(graph, weight, unsigned, f"{out}_float")


def _signed(graph: Graph, weight: Coded, unsigned: str, out: str) -> str:
    wide = graph.node("Cast", [unsigned], f"{out}_wide", to=FLOAT)
    if weight.step != 1:
        wide = graph.node(
            "Mul", [wide, graph.constant(f"code_step_{weight.step}", weight.step, np.float32)], f"{out}_steps"
        )
    return graph.node("Add", [wide, graph.constant(f"code_low_{-weight.low}", weight.low, np.float32)], out)


def _unfold(graph: Graph, name: str, weight: Coded, ids: str | None, shape: list[int], out: str = "") -> str:
    """Add unsigned codes as uint8 in `shape`: of the rows at `ids`, or of all."""
    unsigned = weight.unsigned()
    out = out or f"{name}.codes"
    sizes = graph.constant(f"{out}_shape", shape, np.int64)
    left, result = weight.bits, ""
    for width in planes(weight.bits):
        left -= width
        packed = graph.constant(f"{name}.codes_{width}", fold(unsigned >> left, width)[:, :, None])
        if ids is not None:
            packed = graph.node("Gather", [packed, ids], f"{out}_{width}_rows", axis=0)
        shifts = graph.constant(f"shifts_{width}", np.arange(0, 8, width), np.uint8)
        plane = graph.node("BitShift", [packed, shifts], f"{out}_{width}_shifted", direction="RIGHT")
        mask = graph.constant(f"mask_{width}", MASK[width], np.uint8)
        plane = graph.node("BitwiseAnd", [plane, mask], f"{out}_{width}_masked")
        plane = graph.node("Reshape", [plane, sizes], f"{out}_{width}_plane")
        if left:
            by = graph.constant(f"shift_{left}", left, np.uint8)
            plane = graph.node("BitShift", [plane, by], f"{out}_{width}_high", direction="LEFT")
        result = graph.node("BitwiseOr", [result, plane], f"{out}_{width}_joined") if result else plane
    return result


def fold(plane: Array, width: int) -> Array:
    """Pack the low `width` bits of uint8 numbers (rows, columns) into bytes, the first in the lowest bits."""
    per_byte = 8 // width
    parts = (plane & MASK[width]).reshape(plane.shape[0], -1, per_byte)
    return np.bitwise_or.reduce(parts << np.arange(0, 8, width, dtype=np.uint8), axis=2).astype(np.uint8)
