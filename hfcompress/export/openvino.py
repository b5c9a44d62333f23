"""Export to OpenVINO: weights in 8 or 4 bits as the checkpoint has them, activations in int8 where asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..core.scratch import scratch_folder
from .calibrate import Batch
from .lower_openvino import NamedWeights, lower_named, stored_bits
from .opening import MADE_OF, NOTE, given, rt_info
from .trace import Traced, quiet
from .weights import Array, Coded, Dense


def write_openvino(traced: Traced, file: Path, *, int8: bool, batches: list[Batch], made_of: str = "") -> None:
    """Write the model to `file` (.xml) and the .bin beside it; `made_of` is kept in it.

    With `int8`, layers whose inputs have no grid get one by NNCF's post-training quantization on `batches`.
    """
    import openvino as ov

    how = NamedWeights(int8)
    proto = lower_named(traced, how)
    with quiet():
        model, readers = _converted(proto, how)
        if how.open:
            left = sorted({op for name, ops in readers.items() if name not in how.open for op in ops})
            transformer = any(node.op_type == "Softmax" for node in proto.graph.node)
            model = _quantized(model, left, [_fed(traced, batch) for batch in batches], transformer)
        for key in list(model.get_rt_info()):
            del model.get_rt_info()[key]  # what the converter was called with
        for key, value in {NOTE: proto.metadata_props[0].value, MADE_OF: made_of}.items():
            if value:
                model.set_rt_info(value, rt_info(key))
        ov.save_model(model, str(file), compress_to_fp16=False)


def _converted(proto: Any, how: NamedWeights) -> tuple[Any, dict[str, set[str]]]:
    """Return the model with its weights in place, and the operators that read each."""
    import openvino as ov

    with scratch_folder() as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(proto.SerializeToString())
        model = ov.convert_model(str(path))
    readers: dict[str, set[str]] = {}
    for parameter in model.get_parameters():
        name = parameter.get_friendly_name()
        if name not in how.weights:
            continue
        weight = how.weights[name]
        if name in how.open and isinstance(weight, Coded):
            weight = Dense(weight.widened())  # NNCF rounds it, to the same bits
        node = constant(weight, how.shapes.get(name))
        node.set_friendly_name(name)
        readers[name] = set(_readers(parameter))
        parameter.output(0).replace(node.output(0))
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return model, readers


def _readers(node: Any) -> Iterator[str]:
    """Yield the names of the operators that compute with the output of `node`."""
    for reader in (target.get_node() for target in node.output(0).get_target_inputs()):
        if reader.get_type_name() in ("Transpose", "Reshape", "Convert"):
            yield from _readers(reader)
        else:
            yield reader.get_friendly_name()


def _quantized(model: Any, left: list[str], batches: list[dict[str, Array]], transformer: bool) -> Any:
    import nncf

    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        ignored_scope=nncf.IgnoredScope(names=left, validate=False),
    )


def _fed(traced: Traced, batch: Batch) -> dict[str, Array]:
    return {name: given(name, batch) for name in traced.spec.names}


def constant(weight: Dense | Coded, kernel: tuple[int, ...] | None = None) -> Any:
    """Return a node that gives the weight in float32, (rows, columns) or `kernel`, stored in the bits it has.

    Codes, then Convert, Subtract, Multiply: the form in which OpenVINO's kernels read compressed weights.
    """
    from openvino import opset13 as op

    if isinstance(weight, Dense):
        return op.constant(weight.values.reshape(kernel or weight.shape))
    rows, columns = weight.shape
    size = weight.group_size if weight.groups > 1 and weight.group_size else columns
    padded = np.pad(weight.codes, ((0, 0), (0, -columns % size)))
    shape = list(kernel or weight.shape) if weight.groups == 1 else [rows, weight.groups, size]
    values = op.convert(_codes(padded, shape, weight), "f32")
    spread = [rows, *(1 for _ in shape[1:])] if weight.groups == 1 else [rows, weight.groups, 1]
    if weight.zero is not None:
        values = op.subtract(values, op.convert(_codes(weight.zero, spread, weight), "f32"))
    values = op.multiply(values, _scale(weight.scale.reshape(spread)))
    if weight.groups == 1:
        return values
    values = op.reshape(values, np.array([rows, padded.shape[1]], np.int64), special_zero=False)
    if padded.shape[1] != columns:
        values = op.slice(values, *(np.array([v], np.int64) for v in (0, columns, 1, 1)))
    return values if kernel is None else op.reshape(values, np.array(kernel, np.int64), special_zero=False)


def _codes(codes: Array, shape: list[int], weight: Coded) -> Any:
    """Return codes as they lie in the file: int8, int4, or uint4 where there are zero points."""
    import openvino as ov

    if stored_bits(weight) == 8:
        return ov.opset13.constant(np.ascontiguousarray(codes.reshape(shape)))
    if weight.zero is None:
        return ov.opset13.constant(np.ascontiguousarray(codes.reshape(shape)), dtype=ov.Type.i4)
    shifted = (codes.astype(np.int16) + 8).astype(np.uint8)
    return ov.opset13.constant(shifted.reshape(shape), dtype=ov.Type.u4)


def _scale(scale: Array) -> Any:
    """Return scales as float32, stored in 16 bits where that loses nothing."""
    from openvino import opset13 as op

    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    if np.array_equal(half.astype(np.float32), scale):
        return op.convert(op.constant(half), "f32")
    return op.constant(np.ascontiguousarray(scale))
