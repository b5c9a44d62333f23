"""Dynamic int8 quantization of an ONNX file: matrix products per output channel, embedding tables per row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..core.errors import ExportError
from .cpu import needs_reduced_range

MIN_TABLE = 4096  # numbers; below it a table is not worth its three extra nodes


def quantize_file(source: Path, target: Path, reduce_range: bool | None = None) -> None:
    """Write the int8 version of the fp32 file `source` to `target`.

    Convolutions stay in fp32: integer convolution is slower than float on CPUs and a ViT has one small one. Weights
    are symmetric, so that a model that lies on an int8 grid already keeps its values when the range is not reduced.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        quantize_dynamic(
            str(source),
            str(target),
            per_channel=True,
            reduce_range=needs_reduced_range() if reduce_range is None else reduce_range,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
        )
        model = onnx.load(str(target))
        quantize_tables_(model)
        onnx.save(model, str(target))
    except (ValueError, RuntimeError, KeyError) as error:
        raise ExportError(f"ONNX Runtime could not quantize the export: {type(error).__name__}: {error}") from error


def quantize_tables_(model: ModelProto) -> None:
    """Store each float table that rows are gathered from as int8 rows, each with a scale of its own.

    ONNX Runtime's own quantizer gives the whole table one scale, which loses the rows of rare tokens.
    """
    graph = model.graph
    tables = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2}
    uses = [(node, name) for node in graph.node for name in node.input if name in tables]
    done: set[str] = set()
    for name, table in tables.items():
        nodes = [node for node, used in uses if used == name]
        if not nodes or np.prod(table.dims) < MIN_TABLE or not all(_gathers_rows(node, name) for node in nodes):
            continue
        graph.initializer.extend(_pack_rows(table))
        for node in nodes:
            _replace(graph, node, _gather_packed(node, name))
        done.add(name)
    kept = [t for t in graph.initializer if t.name not in done]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _gathers_rows(node: NodeProto, table: str) -> bool:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return node.op_type == "Gather" and axis == 0 and node.input[0] == table


def _pack_rows(table: TensorProto) -> list[TensorProto]:
    """Return the int8 rows (V, D) and their float scales (V, 1)."""
    values = numpy_helper.to_array(table)
    scale = np.abs(values).max(axis=1, keepdims=True) / 127.0
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    rows = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    return [numpy_helper.from_array(rows, f"{table.name}_int8"), numpy_helper.from_array(scale, f"{table.name}_scale")]


def _gather_packed(node: NodeProto, table: str) -> list[NodeProto]:
    base, out = f"{node.name or node.output[0]}_int8", node.output[0]
    return [
        helper.make_node("Gather", [f"{table}_int8", node.input[1]], [f"{base}_rows"], f"{base}_rows", axis=0),
        helper.make_node("Gather", [f"{table}_scale", node.input[1]], [f"{base}_scale"], f"{base}_scale", axis=0),
        helper.make_node("Cast", [f"{base}_rows"], [f"{base}_float"], f"{base}_float", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{base}_float", f"{base}_scale"], [out], f"{base}_mul"),
    ]


def _replace(graph: onnx.GraphProto, node: NodeProto, by: list[NodeProto]) -> None:
    index = next(i for i, candidate in enumerate(graph.node) if candidate is node or candidate == node)
    graph.node.remove(node)
    for offset, new in enumerate(by):
        graph.node.insert(index + offset, new)
