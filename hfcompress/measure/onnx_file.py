"""An ONNX file by itself, whoever made it: what it takes, what it weighs, and which shapes it leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import MeasureError, shown
from ..export.files import data_files, require_data
from ..export.inputs import CHOICES, InputSpec
from .result import ModelResult

TEXT = ("input_ids", "attention_mask", "token_type_ids")
FEW = 100  # token ids that every vocabulary has, where the graph does not show how many there are
_SAME_ROWS = ("Cast", "Identity", "Reshape", "DequantizeLinear")  # between a table and what looks rows up in it
_FLOATS = (1, 10, 11, 16)  # TensorProto's float, float16, double, bfloat16


@dataclass(frozen=True)
class OnnxFile:
    """What a graph says: its inputs, and the sizes it fixes (None: any)."""

    spec: InputSpec
    batch: int | None = None
    length: int | None = None

    def check(self, file: Path, batch: int, length: int | None) -> None:
        """Raise MeasureError for a shape that the graph does not take."""
        for what, fixed, given in (("batch", self.batch, batch), ("length", self.length, length)):
            if fixed is not None and given is not None and fixed != given:
                raise MeasureError(
                    f"{file.name} takes a {what} of {fixed} only (got {given}): give --shape that fits, or export the "
                    "model with dynamic axes"
                )


def read_onnx(file: Path) -> OnnxFile:
    """Return what a file takes; MeasureError when it is no ONNX file, or wants more than text or pixels.

    Raises ExportError when the files that its weights lie in are not beside it.
    """
    proto = _load(file)
    require_data(proto, file)
    graph = proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs = {i.name: i for i in graph.input if i.name not in stored}
    sizes = {name: [d.dim_value or None for d in i.type.tensor_type.shape.dim] for name, i in inputs.items()}
    if len(inputs) == 1 and len(next(iter(sizes.values()))) == 4:
        ((_, (batch, channels, *sides)),) = sizes.items()
        height, width = (side or 224 for side in sides)
        return OnnxFile(InputSpec(("pixel_values",), channels=channels or 3, image_size=(height, width)), batch)
    if "input_ids" not in inputs or set(inputs) - set(TEXT):
        raise MeasureError(f"{file.name} takes {', '.join(inputs)}; known are one image, or {', '.join(TEXT)}")
    dims = sizes["input_ids"]
    batch, length = (dims[0], dims[-1]) if len(dims) > 1 else (*dims, None, None)[:2]
    choices = (dims[1] or CHOICES) if len(dims) == 3 else 0
    rows = {name: _rows(graph, name) for name in TEXT}
    names = tuple(name for name in TEXT if name in inputs)
    spec = InputSpec(names, rows["input_ids"] or FEW, None, rows["token_type_ids"] or 1, length or 0, choices=choices)
    return OnnxFile(spec, batch, length)


def describe_onnx(file: Path) -> ModelResult:
    """Return what needs no clock: the file with the files its weights lie in, and the numbers it holds."""
    from onnx import checker, numpy_helper

    proto = _load(file)
    require_data(proto, file)
    files = {name: (file.parent / name).stat().st_size for name in (file.name, *sorted(data_files(proto)))}
    numbers = nonzeros = 0
    for tensor in proto.graph.initializer:
        if tensor.data_type in _FLOATS or len(tensor.dims) > 1:
            try:
                values = numpy_helper.to_array(tensor, base_dir=str(file.parent))
            except (ValueError, TypeError, RuntimeError, OSError, checker.ValidationError) as error:
                raise MeasureError(
                    f"{file} holds weights that cannot be read, {shown(tensor.name)}: {error}"
                ) from error
            numbers, nonzeros = numbers + values.size, nonzeros + int((values != 0).sum())
    return ModelResult(
        name=file.name, size_bytes=sum(files.values()), files=files, parameters=numbers, nonzeros=nonzeros, flops={}
    )


def _load(file: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(file), load_external_data=False)
    except (DecodeError, OSError, ValueError, RuntimeError) as error:
        raise MeasureError(f"{file} cannot be read as an ONNX file: {error}") from error


def _rows(graph: Any, name: str) -> int | None:
    """Return how many rows the smallest table has in which an input looks rows up; None where none is seen."""
    dims = {tensor.name: tensor.dims for tensor in graph.initializer}
    made = {out: node for node in graph.node for out in node.output}
    ids, found = {name}, []
    for node in graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in ids:
            ids.add(node.output[0])
        elif node.op_type in ("Gather", "GatherBlockQuantized") and node.input[1] in ids:
            table = node.input[0]
            while table in made and made[table].op_type in _SAME_ROWS:
                table = made[table].input[0]
            found += [int(dims[table][0])] if dims.get(table) else []
    return min(found, default=None)
