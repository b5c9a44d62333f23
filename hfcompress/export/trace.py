"""Tracing a model with its weights left out: each layer becomes one node that a later step spells out."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from ..core.errors import ExportError
from .folding import fold
from .inputs import InputSpec, example_inputs, spec_of
from .opening import head_outputs
from .plain import plain_copy
from .weights import Inputs, Layer, layer_of

DOMAIN = "hfcompress"
LINEAR, TABLE, CONVOLUTION = "Linear", "Embedding", "Convolution"


class Logits(nn.Module):
    """Positional tensors in, the head's outputs out: what an exporter can trace."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map the inputs, in the order of `names`, to the logits, or to all outputs of a head that has several."""
        found = tuple(self._outputs(tensors).values())
        return found[0] if len(found) == 1 else found

    def output_names(self, *tensors: Tensor) -> list[str]:
        """Return what an export calls what these inputs give; ExportError where the model can't do with them."""
        try:
            with torch.inference_mode():
                return list(self._outputs(tensors))
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError, KeyError) as error:
            raise ExportError(
                f"a {type(self.model).__name__} can't be run on {', '.join(self.names)} alone, which is what an export "
                f"takes: {str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__}"
            ) from error

    def _outputs(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        return head_outputs(self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True))


class _Stand(nn.Module):
    """The float layer it holds, but to the ONNX exporter a single node that names its path."""

    def __init__(self, layer: Layer, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.path, self.shape, self.inputs = inner, layer.path, layer.weight.shape, layer.inputs
        self.op = TABLE if layer.is_table else CONVOLUTION if layer.convolution else LINEAR

    def __getattr__(self, name: str) -> Any:
        """Return what the layer has: some models ask for its weight's dtype, or how a kernel moves."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the layer does."""
        if not torch.onnx.is_in_onnx_export():
            return self.inner(x if self.inputs is None else rounded(x, self.inputs))
        if self.op == TABLE:
            return self._node([x], x.dim(), [*x.shape, self.shape[1]])
        if self.op == LINEAR:
            return self._node([x], x.dim(), [*x.shape[:-1], self.shape[0]])
        return self._node([x], x.dim(), list(self.inner(x).shape))

    def _node(self, inputs: list[Tensor], rank: int, shape: list[Any]) -> Tensor:
        known: Any = {"path": self.path, "rank": rank}
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self.op}", inputs, known, dtype=torch.float32, shape=shape, version=1
        )


def rounded(x: Tensor, to: Inputs) -> Tensor:
    """Return `x` on the grid `to`, as floats."""
    return (x / to.step).round().clamp(-to.zero, 2**to.bits - 1 - to.zero) * to.step


@dataclass(frozen=True)
class Traced:
    """A graph with a node per use of a layer (`LINEAR`, `TABLE`, …), the layers, and the model it computes."""

    proto: ModelProto
    layers: dict[str, Layer]
    plain: Logits
    spec: InputSpec
    image_size: int | tuple[int, int] | None = None


def trace(model: nn.Module, image_size: int | tuple[int, int] | None, opset: int) -> Traced:
    """Trace `model`, which stays as it is; batch and sequence are dynamic, an image's side is fixed.

    Raises ExportError when the exporter fails.
    """
    spec = spec_of(model)
    copy = plain_copy(model)
    layers = _stand_in_(copy, model)
    plain = Logits(copy, spec.names).eval()
    with quiet():
        proto = _export(plain, spec, image_size, opset)
    layers = fold(proto, layers, CONVOLUTION)
    return Traced(proto, layers, plain, spec, image_size)


def _stand_in_(copy: nn.Module, model: nn.Module) -> dict[str, Layer]:
    """Put a stand-in over every layer of `copy`, as `model` has it, and return the layers by path."""
    layers: dict[str, Layer] = {}
    made: dict[int, _Stand] = {}
    first: dict[int, str] = {}  # by weight
    places = dict(model.named_modules(remove_duplicate=False))
    for path, module in places.items():
        weight: Any = getattr(module, "weight", None)
        if id(module) not in made:
            layer = layer_of(path, first.setdefault(id(weight), path), module)
            if layer is None:
                continue
            layers[path] = layer
            made[id(module)] = _Stand(layer, copy.get_submodule(path))
        copy.set_submodule(path, made[id(module)])
    return layers


def _export(plain: Logits, spec: InputSpec, image_size: int | tuple[int, int] | None, opset: int) -> ModelProto:
    """Trace `plain`; the tensors are distinct and the mask holds zeros, or the exporter merges inputs."""
    inputs = example_inputs(spec, 2, image_size=image_size, mask_zeros=True)
    axes = {0: torch.export.Dim("batch")}
    if not spec.is_image:
        axes |= {index: torch.export.Dim(name) for index, name in enumerate(spec.text_axes, start=1)}
    outputs = plain.output_names(*inputs.values())
    try:
        program: Any = torch.onnx.export(
            plain,
            tuple(inputs.values()),
            input_names=list(spec.names),
            output_names=outputs,
            dynamic_shapes=(tuple(dict(axes) for _ in inputs),),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        return _without_traces(program.model_proto)
    except Exception as error:  # the exporter has no common base class for its failures
        raise ExportError(f"the ONNX exporter failed: {type(error).__name__}: {str(error)[:500]}") from error


def _without_traces(proto: ModelProto) -> ModelProto:
    """Drop the exporter's notes on every node: stack traces, with paths of this machine, larger than a small model."""
    for holder in (proto, proto.graph):
        holder.ClearField("doc_string")
        holder.ClearField("metadata_props")
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    return proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters' prints, warnings and log chatter off the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
