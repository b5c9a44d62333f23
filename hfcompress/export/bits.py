"""Codes of any width, and weights without their zeros, inside an ONNX file, which knows whole bytes only.

A code of b bits is cut into planes of 4, 2 and 1 bits, each stored without a gap in bytes and unfolded by shifts and
masks; digits of base 3 lie five to a byte. Of a matrix this is done once, when a session is opened and folds constants;
of a table it is done to the rows looked up.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from .graph import Graph
from .notes import kind_of
from .weights import TERNARY, Array, Coded, Dense, Weight, Worded

INT32, INT8, FLOAT, BOOL = TensorProto.INT32, TensorProto.INT8, TensorProto.FLOAT, TensorProto.BOOL
TRITS = 5  # digits of base 3 in a byte
END = np.iinfo(np.int64).max


def planes(bits: int) -> list[int]:
    """Return the widths of the planes of a `bits`-wide code, the highest first: 6 is 4 + 2, 3 is 2 + 1."""
    return [width for width in (4, 2, 1) if bits & width]


def fold(numbers: Array, width: int) -> Array:
    """Pack the low `width` bits of uint8 numbers (rows, columns) into bytes per row, the first in the lowest bits.

    TERNARY: digits of base 3, the first the least.
    """
    each, base = (TRITS, 3) if width == TERNARY else (8 // width, 2**width)
    padded = np.pad(numbers % base, ((0, 0), (0, -numbers.shape[1] % each)))
    powers = base ** np.arange(each)
    return (padded.reshape(len(numbers), -1, each) * powers).sum(2).astype(np.uint8)


def described(weight: Weight) -> str:
    """Return what the numbers of a weight are in the file."""
    width: int | str = "float32"
    if not isinstance(weight, Dense):
        width = weight.bits or "ternary"
    return kind_of(width, sparse=weight.mask is not None)


def matrix_codes(graph: Graph, name: str, weight: Coded) -> str:
    """Add the codes as int8 (rows, columns) and return their name."""
    if weight.mask is None:
        if weight.bits == 8:
            return graph.constant(f"{name}/codes", weight.codes)
        return graph.node("Cast", [unfolded(graph, f"{name}/codes", weight)], f"{name}/codes", to=INT8)
    return graph.node("Cast", [all_masked(graph, name, weight)], f"{name}/codes", to=INT8)


def matrix_values(graph: Graph, name: str, weight: Dense) -> str:
    """Add plain values as float32 (rows, columns) and return their name."""
    if weight.mask is None:
        return graph.constant(f"{name}.weight", weight.values)
    return all_masked(graph, name, weight)


def gathered(graph: Graph, name: str, weight: Dense | Coded, ids: str, rank: int, out: str) -> str:
    """Add the codes or values of the rows at `ids` (`rank` dimensions) as float32 (…, columns); return their name."""
    if weight.mask is not None:
        return masked_rows(graph, name, weight, ids, rank, out)
    if isinstance(weight, Dense):
        return graph.node("Gather", [matrix_values(graph, name, weight), ids], f"{out}/rows", axis=0)
    if weight.bits == 8:
        rows = graph.node("Gather", [matrix_codes(graph, name, weight), ids], f"{out}/rows", axis=0)
        return graph.node("Cast", [rows], f"{out}/float", to=FLOAT)
    return unfolded(graph, f"{name}/codes", weight, ids, rank, out)


def unfolded(graph: Graph, name: str, weight: Coded | Worded, ids: str = "", rank: int = 1, out: str = "") -> str:
    """Add the codes as float32: of the rows at `ids`, or of all that are stored; return their name."""
    u, out = weight.stored(), out or name
    wide = ""
    left = weight.bits
    for width in planes(weight.bits) or [TERNARY]:
        left -= width
        plane = _plane(graph, f"{name}/{width}", u >> left, width, ids, rank, f"{out}/{width}")
        plane = graph.node("Cast", [plane], f"{out}/{width}/float", to=FLOAT)
        factor = graph.shared(f"times_{weight.step << left}", weight.step << left, np.float32)
        plane = graph.node("Mul", [plane, factor], f"{out}/{width}/scaled")
        wide = graph.node("Add", [wide, plane], f"{out}/{width}/sum") if wide else plane
    return graph.node("Add", [wide, graph.shared(f"plus_{weight.low}", weight.low, np.float32)], f"{out}/signed")


def _plane(graph: Graph, name: str, u: Array, width: int, ids: str, rank: int, out: str) -> str:
    """Add numbers of `width` bits, folded in the file, as integers: the rows at `ids`, or all (rows, columns)."""
    packed = graph.constant(name, fold(u, width)[:, :, None])
    if ids:
        packed = graph.node("Gather", [packed, ids], f"{out}/rows", axis=0)
    if width == TERNARY:
        powers = graph.shared("powers_of_3", 3 ** np.arange(TRITS), np.int32)
        digits = graph.node("Div", [graph.node("Cast", [packed], f"{out}/int", to=INT32), powers], f"{out}/div")
        plane = graph.node("Mod", [digits, graph.shared("three", 3, np.int32)], f"{out}/mod")
    else:
        shifts = graph.shared(f"shifts_{width}", np.arange(0, 8, width), np.uint8)
        plane = graph.node("BitShift", [packed, shifts], f"{out}/shifted", direction="RIGHT")
        mask = graph.shared(f"mask_{width}", 2**width - 1, np.uint8)
        plane = graph.node("BitwiseAnd", [plane, mask], f"{out}/masked")
    shape = [0] * rank + [-1]
    plane = graph.node("Reshape", [plane, graph.shared(f"flat_{rank}", shape, np.int64)], f"{out}/flat")
    each = TRITS if width == TERNARY else 8 // width
    return cut(graph, plane, u.shape[1], out) if u.shape[1] % each else plane


def cut(graph: Graph, x: str, columns: int, out: str) -> str:
    """Add the first `columns` of the last dimension of `x` and return their name."""
    start, axis = graph.shared("cut_from", [0], np.int64), graph.shared("cut_axis", [-1], np.int64)
    end = graph.shared(f"cut_to_{columns}", [columns], np.int64)
    return graph.node("Slice", [x, start, end, axis], f"{out}/cut")


def _stored_values(graph: Graph, name: str, weight: Weight) -> str:
    """Add what is stored under a mask, (count,): float32 values or int8 codes."""
    if isinstance(weight, Dense):
        values = weight.values[weight.mask]
        return graph.constant(f"{name}/values", values)
    flat = graph.shared("flat_list", [-1], np.int64)
    if weight.bits == 8:
        return graph.constant(f"{name}/values", weight.codes[weight.mask])
    codes = graph.node("Reshape", [unfolded(graph, f"{name}/stored", weight), flat], f"{name}/values_float")
    return graph.node("Cast", [codes], f"{name}/values", to=INT8)


def mask_of(graph: Graph, name: str, mask: Array, ids: str = "", rank: int = 1, out: str = "") -> str:
    """Add 0 or 1 as int32: of the rows at `ids`, or (rows, columns)."""
    out = out or f"{name}/mask"
    plane = _plane(graph, f"{name}/mask/1", mask.astype(np.uint8), 1, ids, rank, f"{out}/mask")
    return graph.node("Cast", [plane], f"{out}/mask/int", to=INT32)


def all_masked(graph: Graph, name: str, weight: Weight) -> str:
    """Add every value or code at its place, (rows, columns), float32, and return its name."""
    mask = mask_of(graph, name, _places(weight))
    flat = graph.node("Reshape", [mask, graph.shared("flat_list", [-1], np.int64)], f"{name}/mask/flat")
    axis = graph.shared("first_axis", 0, np.int32)
    counted = graph.node("CumSum", [flat, axis], f"{name}/mask/counted")
    shape = graph.constant(f"{name}/mask/shape", weight.shape, np.int64)
    at = graph.node("Reshape", [counted, shape], f"{name}/mask/at")
    return _place(graph, name, weight, mask, at, _base(graph, name, weight, "", f"{name}/all"), f"{name}/all")


def masked_rows(graph: Graph, name: str, weight: Weight, ids: str, rank: int, out: str) -> str:
    """Add the values or codes of the rows at `ids` at their places, (…, columns), float32, and return their name."""
    mask = _places(weight)
    rows = mask_of(graph, name, mask, ids, rank, out)
    counted = graph.node("CumSum", [rows, graph.shared("last_axis", -1, np.int32)], f"{out}/counted")
    before = np.cumsum(mask.sum(1)) - mask.sum(1)
    starts = graph.constant(f"{name}/starts", before[:, None], np.int32)
    start = graph.node("Gather", [starts, ids], f"{out}/start", axis=0)
    at = graph.node("Add", [counted, start], f"{out}/at")
    return _place(graph, name, weight, rows, at, _base(graph, name, weight, ids, out), out)


def _place(graph: Graph, name: str, weight: Weight, mask: str, at: str, base: str, out: str) -> str:
    """Add the value of number `at` (counted from 1) where `mask` is 1, elsewhere `base`."""
    one, zero = graph.shared("one_int", 1, np.int32), graph.shared("zero_int", 0, np.int32)
    index = graph.node("Max", [graph.node("Sub", [at, one], f"{out}/before"), zero], f"{out}/index")
    values = graph.node("Gather", [_stored_values(graph, name, weight), index], f"{out}/picked", axis=0)
    if not isinstance(weight, Dense):
        values = graph.node("Cast", [values], f"{out}/picked_float", to=FLOAT)
    where = graph.node("Cast", [mask], f"{out}/where", to=BOOL)
    return graph.node("Where", [where, values, base], f"{out}/placed")


def _places(weight: Weight) -> Array:
    if weight.mask is None:
        raise ValueError("the weight has all its numbers")
    return weight.mask


def _base(graph: Graph, name: str, weight: Weight, ids: str, out: str) -> str:
    """Add what stands where nothing is stored: 0, or the zero points by column."""
    if isinstance(weight, Dense) or weight.zero is None:
        return graph.shared("zero_float", 0, np.float32)
    return by_column(graph, f"{name}/zero", weight.zero, weight, ids, f"{out}/base")


def by_column(graph: Graph, name: str, values: Array, weight: Coded, ids: str, out: str) -> str:
    """Add scales or zero points (rows, groups), of the rows at `ids` if any, spread over the columns, as float32."""
    stored = graph.bfloat16(name, values) if values.dtype == np.float32 else graph.constant(name, values)
    if ids:
        stored = graph.node("Gather", [stored, ids], f"{out}/rows", axis=0)
    wide = graph.node("Cast", [stored], f"{out}/float", to=FLOAT)
    if weight.groups == 1:
        return wide
    group = np.arange(weight.shape[1]) // (weight.group_size or weight.shape[1])
    index = graph.shared(f"group_of_{weight.shape[1]}_{weight.group_size}", group, np.int32)
    return graph.node("Gather", [wide, index], f"{out}/spread", axis=-1)
