"""Spelling out a traced graph: each layer's node is replaced by ONNX operators and its stored weight."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..core.errors import ExportError
from .notes import note_of
from .opening import NOTE
from .trace import CONVOLUTION, DOMAIN, TABLE, Traced
from .weights import Layer

FLOAT, INT8, UINT8 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8
CONTRIB = "com.microsoft"  # operators of ONNX Runtime's own


class Graph:
    """Nodes and initializers in the making; a constant or a node asked for twice under one name is made once.

    Names of the exporter hold no slash, so those made here do: what is derived of `a` is `a/codes`, never `a_codes`.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self._made: dict[str, NodeProto] = {}

    def constant(self, name: str, values: Any, dtype: Any = None) -> str:
        """Store an initializer and return its name; ExportError when it is taken."""
        return self._stored(numpy_helper.from_array(np.asarray(values, dtype=dtype, order="C"), name))

    def shared(self, name: str, values: Any, dtype: Any) -> str:
        """Store an initializer that belongs to no layer and return its name."""
        return self.constant(f"shared/{name}", values, dtype)

    def bfloat16(self, name: str, values: Any) -> str:
        """Store float32 numbers as bfloat16 where that holds them all, else as they are; return their name."""
        words = np.ascontiguousarray(values, np.float32).view(np.uint32)
        if (words & 0xFFFF).any():
            return self.constant(name, values, np.float32)
        halves = (words >> 16).astype(np.uint16).tobytes()
        return self._stored(helper.make_tensor(name, TensorProto.BFLOAT16, values.shape, halves, raw=True))

    def _stored(self, made: TensorProto) -> str:
        known = self.constants.setdefault(made.name, made)
        if known is not made and known != made:
            raise ExportError(f"two different constants of the export are called {made.name!r}")
        return made.name

    def node(self, op: str, inputs: list[str], name: str, *more: str, domain: str = "", **attributes: Any) -> str:
        """Add a node whose first output is `name` (others: `more`) and return that; ExportError when it is taken."""
        made = helper.make_node(op, inputs, [name, *more], name=f"node/{name}", domain=domain, **attributes)
        if self._made.setdefault(name, made) is made:
            self.nodes.append(made)
        elif self._made[name] != made:
            raise ExportError(f"two different nodes of the export are called {name!r}")
        return name


class Lowering(Protocol):
    """One way to compute a layer; `note` says which, and each function what the layer's numbers are in the file."""

    @property
    def note(self) -> str:
        """What the layers spelt out so far are computed in."""
        ...

    def linear(self, graph: Graph, x: str, rank: int, layer: Layer, out: str) -> str:
        """Add y = x W^T + b, named `out`."""
        ...

    def convolve(self, graph: Graph, x: str, layer: Layer, out: str) -> str:
        """Add a convolution of `x`, its bias and its bound, named `out`."""
        ...

    def table(self, graph: Graph, ids: str, rank: int, layer: Layer, out: str) -> str:
        """Add the rows of the table at `ids`, named `out`."""
        ...


def lower(traced: Traced, how: Lowering) -> ModelProto:
    """Return a graph without nodes of this package; its metadata say what it runs in."""
    proto = ModelProto()
    proto.CopyFrom(traced.proto)
    graph = Graph()
    weights: dict[str, str] = {}
    tables: dict[str, str] = {}
    for node in traced.proto.graph.node:
        if node.domain != DOMAIN:
            graph.nodes.append(copy.deepcopy(node))
            continue
        path, rank = _attribute(node, "path").s.decode(), int(_attribute(node, "rank").i)
        layer, out = traced.layers[path], node.output[0]
        if node.op_type == TABLE:
            tables[path] = how.table(graph, node.input[0], rank, layer, out)
        elif node.op_type == CONVOLUTION:
            weights[path] = how.convolve(graph, node.input[0], layer, out)
        else:
            weights[path] = how.linear(graph, node.input[0], rank, layer, out)
    del proto.graph.node[:]
    proto.graph.node.extend(graph.nodes)
    _set_domains(proto)
    _store_used(proto, [*traced.proto.graph.initializer, *graph.constants.values()])
    helper.set_model_props(proto, {NOTE: note_of(list(weights.values()), list(tables.values()), how.note)})
    return proto


def add_bias(graph: Graph, y: str, layer: Layer, out: str) -> None:
    """Add the layer's bias to `y`, under the name `out`; call only for a layer that has one."""
    graph.node("Add", [y, graph.constant(f"{layer.path}.bias", layer.bias)], out)


def add_convolution(graph: Graph, x: str, kernel: str, bias: str, layer: Layer, out: str) -> str:
    """Add the convolution of `x` with the 4-dimensional `kernel` and its bound, under the name `out`."""
    how = layer.convolution
    if how is None:
        raise ExportError(f"{layer.path} is no convolution")
    moves: dict[str, Any] = {"strides": how.strides, "pads": how.pads, "dilations": how.dilations, "group": how.groups}
    inputs = [x, kernel, *([bias] if bias else [])]
    if how.bound is None:
        return graph.node("Conv", inputs, out, kernel_shape=how.shape[2:], **moves)
    made = graph.node("Conv", inputs, f"{out}/unbounded", kernel_shape=how.shape[2:], **moves)
    if how.bound == (0.0, float("inf")):
        return graph.node("Relu", [made], out)
    low, high = (graph.shared(f"bound_{end}", end, np.float32) for end in how.bound)
    return graph.node("Clip", [made, low, high], out)


def as_kernel(graph: Graph, matrix: str, layer: Layer, name: str) -> str:
    """Add a matrix (rows, columns) in the shape of the layer's kernel and return its name."""
    shape = layer.convolution.shape if layer.convolution else layer.weight.shape
    return graph.node("Reshape", [matrix, graph.shared("kernel_" + "x".join(map(str, shape)), shape, np.int64)], name)


def _attribute(node: NodeProto, name: str) -> Any:
    return next(a for a in node.attribute if a.name == name)


def _set_domains(proto: ModelProto) -> None:
    kept = [o for o in proto.opset_import if o.domain not in (DOMAIN, CONTRIB)]
    if any(node.domain == CONTRIB for node in proto.graph.node):
        kept.append(helper.make_opsetid(CONTRIB, 1))
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _store_used(proto: ModelProto, tensors: Iterable[TensorProto]) -> None:
    used = {name for node in proto.graph.node for name in node.input} | {o.name for o in proto.graph.output}
    del proto.graph.initializer[:]
    for tensor in tensors:
        if tensor.name in used:
            proto.graph.initializer.add().CopyFrom(tensor)  # `extend` takes none of over 2 GB
