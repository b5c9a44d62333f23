"""Weights on codebooks inside an ONNX file: codes as packed as the model's, and one Gather from the codewords.

Of a matrix this is done once, when a session is opened and folds constants; of a table, to the rows looked up.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from .bits import all_masked, mask_of, masked_rows, unfolded
from .graph import Graph
from .weights import Worded

INT32, FLOAT = TensorProto.INT32, TensorProto.FLOAT


def worded_matrix(graph: Graph, name: str, weight: Worded) -> str:
    """Add the weight, (rows, columns), in the dtype of its words, and return its name."""
    out = f"{name}/{weight.words.dtype}"
    codes = _codes(graph, name, weight) if weight.mask is None else all_masked(graph, name, weight)
    ids = graph.shared(f"rows_{weight.shape[0]}", np.arange(weight.shape[0]), np.int32) if _high(weight) else ""
    values = _looked_up(graph, name, weight, codes, ids, 1, out)
    return values if weight.mask is None else _times(graph, values, mask_of(graph, name, weight.mask), weight, out)


def worded_rows(graph: Graph, name: str, weight: Worded, ids: str, rank: int, out: str) -> str:
    """Add the rows at `ids` (`rank` dimensions) as float32 (…, columns), and return their name."""
    if weight.mask is None:
        codes = _codes(graph, name, weight, ids, rank, out)
    else:
        codes = masked_rows(graph, name, weight, ids, rank, out)
    at = graph.node("Cast", [ids], f"{out}/ids", to=INT32) if _high(weight) else ""
    values = _looked_up(graph, name, weight, codes, at, rank, f"{out}/words")
    if weight.mask is None:
        return values
    return _times(graph, values, mask_of(graph, name, weight.mask, ids, rank, out), weight, f"{out}/words")


def _codes(graph: Graph, name: str, weight: Worded, ids: str = "", rank: int = 1, out: str = "") -> str:
    if weight.bits < 8:
        return unfolded(graph, f"{name}/codes", weight, ids, rank, out)
    codes = graph.constant(f"{name}/codes", weight.codes)
    return graph.node("Gather", [codes, ids], f"{out}/codes", axis=0) if ids else codes


def _looked_up(graph: Graph, name: str, weight: Worded, codes: str, ids: str, rank: int, out: str) -> str:
    """Add the words that `codes` (…, columns / dim) number in the blocks of the rows `ids`."""
    index = graph.node("Cast", [codes], f"{out}/index", to=INT32)
    each, width = weight.words.shape[1], weight.codes.shape[1]
    if weight.across > 1:
        column = np.arange(width) * weight.dim // weight.wide * each
        offsets = graph.shared(f"blocks_{width}_{weight.dim}_{weight.wide}_{each}", column, np.int32)
        index = graph.node("Add", [index, offsets], f"{out}/index/across")
    if ids:
        high = graph.shared(f"high_{weight.high}", weight.high, np.int32)
        step = graph.shared(f"block_step_{weight.across * each}", weight.across * each, np.int32)
        last = graph.shared("last_axis_list", [-1], np.int64)
        block = graph.node("Mul", [graph.node("Div", [ids, high], f"{out}/block"), step], f"{out}/first")
        block = graph.node("Unsqueeze", [block, last], f"{out}/first/column")
        index = graph.node("Add", [index, block], f"{out}/index/down")
    words = graph.node("Gather", [_words(graph, name, weight), index], f"{out}/gathered", axis=0)
    if weight.dim == 1:
        return words
    shape = graph.shared(f"joined_{rank}", [0] * rank + [-1], np.int64)
    return graph.node("Reshape", [words, shape], f"{out}/joined")


def _words(graph: Graph, name: str, weight: Worded) -> str:
    flat = weight.words.reshape(-1) if weight.dim == 1 else weight.words.reshape(-1, weight.dim)
    if flat.dtype == np.int8:
        return graph.constant(f"{name}/words8", flat)
    return graph.node("Cast", [graph.bfloat16(f"{name}/words", flat)], f"{name}/words/float", to=FLOAT)


def _times(graph: Graph, values: str, mask: str, weight: Worded, out: str) -> str:
    """Add `values` where the mask is 1, else zero."""
    where = graph.node("Cast", [mask], f"{out}/where", to=TensorProto.BOOL)
    zero = graph.shared(f"zero_{weight.words.dtype}_word", 0, weight.words.dtype)
    return graph.node("Where", [where, values, zero], f"{out}/masked")


def _high(weight: Worded) -> bool:
    """Say whether there is more than one block down."""
    return weight.shape[0] > weight.high
