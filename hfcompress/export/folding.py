"""What follows a convolution in a traced graph is folded into it before it is spelt out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from .weights import Array, Coded, Dense, Layer, Weight

NORM, ACTIVATIONS = "BatchNormalization", ("Relu", "Clip")


@dataclass
class _Uses:
    """Who makes and who reads each tensor of a graph."""

    readers: dict[str, list[NodeProto]]
    constants: dict[str, Array]
    outputs: frozenset[str]

    def next(self, node: NodeProto) -> NodeProto | None:
        """Return the only reader of a node's output."""
        found = self.readers.get(node.output[0], [])
        return found[0] if len(found) == 1 and node.output[0] not in self.outputs else None


def fold(proto: ModelProto, layers: Mapping[str, Layer], op: str) -> dict[str, Layer]:
    """Fold what follows each convolution into it, in place: a batch norm into weight and bias, then ReLU as a bound.

    A norm is folded where a row of the weight has one scale or is plain; the bound always. Returns the layers anew.
    """
    uses, made = _uses(proto), dict(layers)
    nodes = [node for node in proto.graph.node if node.op_type == op]
    counted = Counter(made[_path(node)].name for node in nodes)
    gone: list[str] = []
    for node in nodes:
        path = _path(node)
        if counted[made[path].name] > 1 or (convolution := made[path].convolution) is None:
            continue
        follower = uses.next(node)
        if follower is not None and follower.op_type == NORM and (folded := _normed(made[path], follower, uses)):
            made[path], convolution = folded, folded.convolution or convolution
            follower = _take_over(node, follower, gone, uses)
        bound = _bound(follower, uses) if follower is not None else None
        if follower is not None and bound is not None:
            made[path] = replace(made[path], convolution=replace(convolution, bound=bound))
            _take_over(node, follower, gone, uses)
    kept = [n for n in proto.graph.node if not (n.op_type in (NORM, *ACTIVATIONS) and n.output[0] in gone)]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    return made


def _take_over(node: NodeProto, follower: NodeProto, gone: list[str], uses: _Uses) -> NodeProto | None:
    """Give `node` the output of `follower`, which is to go, and return who alone reads it."""
    gone.append(follower.output[0])
    after = uses.next(follower)
    node.output[0] = follower.output[0]
    return after


def _normed(layer: Layer, norm: NodeProto, uses: _Uses) -> Layer | None:
    """Return the layer with a batch norm (Ioffe 2015) in it: y = (x - mean) * gamma / sqrt(var + eps) + beta."""
    names = list(norm.input[1:5])
    if any(name not in uses.constants for name in names) or layer.convolution is None:
        return None
    gamma, beta, mean, variance = (uses.constants[name].astype(np.float64) for name in names)
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    factor = gamma / np.sqrt(variance + epsilon)
    weight = _scaled(layer.weight, factor)
    if weight is None:
        return None
    bias = beta + factor * ((0 if layer.bias is None else layer.bias) - mean)
    seen = replace(layer.convolution, last=names[2].rpartition(".")[0])
    return replace(layer, weight=weight, bias=bias.astype(np.float32), convolution=seen)


def _scaled(weight: Weight, factor: Array) -> Weight | None:
    """Return the weight with its rows times `factor`; None where several scales a row, or words, would all change."""
    if isinstance(weight, Dense):
        return replace(weight, values=(weight.values * factor[:, None]).astype(np.float32))
    if not isinstance(weight, Coded) or weight.groups > 1:
        return None
    return replace(weight, scale=(weight.scale * factor[:, None]).astype(np.float32))


def _bound(node: NodeProto, uses: _Uses) -> tuple[float, float] | None:
    """Return the least and the largest value an activation lets through; None for what is no bound."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip" or any(name and name not in uses.constants for name in node.input[1:]):
        return None
    ends = [uses.constants.get(name) for name in (*node.input[1:], "", "")][:2]
    low, high = (e if v is None else float(v) for v, e in zip(ends, (-np.inf, np.inf), strict=True))
    return low, high


def _uses(proto: ModelProto) -> _Uses:
    readers: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    small = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if len(t.dims) < 2}
    return _Uses(readers, small, frozenset(output.name for output in proto.graph.output))


def _path(node: NodeProto) -> str:
    return next(a.s.decode() for a in node.attribute if a.name == "path")
