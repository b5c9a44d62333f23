"""An export on disk: one file, and where its format wants it the weights in another beside it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ExportError, shown
from ..core.files import saying_where, share_, unfinished_folder

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

LIMIT = 2_000_000_000  # bytes of weights inside an ONNX file: protobuf takes 2**31 - 1, and the graph is in it too
_DIGITS = 19  # of a place in a file, at most
SMALL = 1024  # bytes; a shape or a scale stays in the graph, where tools read it
PAGE = 4096  # bytes that parts of a file which is mapped into memory begin at multiples of


def beside(file: Path) -> Path:
    """Return where the weights of an export lie if not in itself: `.bin` of `.xml`, `.onnx_data` of `.onnx`.

    Optimum and transformers.js look for the weights of an ONNX file under that name.
    """
    return file.with_suffix(".bin") if file.suffix == ".xml" else file.with_name(f"{file.name}_data")


@contextlib.contextmanager
def writing_pair(target: Path) -> Iterator[Path]:
    """Yield a temporary file that, with what is written `beside` it, takes the place of `target` on success.

    The target vanishes first and comes last: there is never one beside another's weights. Raises WriteError when the
    folder cannot be written or is full.
    """
    with saying_where(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = unfinished_folder(target)
        written = folder / target.name
        try:
            yield written
            target.unlink(missing_ok=True)
            beside(target).unlink(missing_ok=True)
            for file in (beside(written), written):
                if file.exists():
                    share_(file)
                    file.replace(target.with_name(file.name))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_onnx(proto: ModelProto, file: Path) -> None:
    """Write a graph, which is spent, to `file`; where its weights are too many for one message, they go `beside` it."""
    if sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > LIMIT:
        with beside(file).open("wb") as stream:
            for tensor in proto.graph.initializer:
                if len(values := tensor.raw_data) >= SMALL:
                    stream.write(bytes(-stream.tell() % PAGE))
                    _refer(tensor, location=beside(file).name, offset=stream.tell(), length=len(values))
                    stream.write(values)
    file.write_bytes(proto.SerializeToString())


def _refer(tensor: TensorProto, **place: int | str) -> None:
    """Let a tensor say where its numbers are in place of holding them."""
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))


def data_files(proto: ModelProto) -> dict[str, int]:
    """Return the files in which a graph's weights lie, as it names them, and the bytes that each has at least."""
    found: dict[str, int] = {}
    for tensor in _tensors(proto):
        place = {entry.key: entry.value for entry in tensor.external_data}
        if name := place.get("location"):
            found[name] = max(found.get(name, 0), _bytes(place, "offset") + _bytes(place, "length"))
    return found


def _bytes(place: Mapping[str, str], key: str) -> int:
    text = place.get(key, "0")
    if not (text.isdecimal() and len(text) < _DIGITS):
        raise ExportError(f"weights of the graph lie at {key} {shown(text)} of {shown(place['location'])}: no number")
    return int(text)


def _tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor that a graph holds or refers to, those in its nodes, branches and functions too."""
    graphs, nodes = [proto.graph], [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        while graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        for attribute in (given for node in nodes for given in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        nodes = []


def require_data(proto: ModelProto, file: Path) -> None:
    """Raise ExportError when a file in which the weights of the graph in `file` lie is missing, cut or elsewhere.

    A graph may name any file of the machine: only those in its own folder are read.
    """
    folder = file.parent.resolve()
    for name, size in data_files(proto).items():
        data = file.parent / name
        if "\0" in name or not data.resolve().is_relative_to(folder):
            raise ExportError(
                f"{file} keeps weights in {shown(name)}, outside its own folder, where no ONNX file has any business: "
                "put them beside it, or get the file from somebody you trust"
            )
        if not data.is_file() or data.stat().st_size < size:
            raise ExportError(f"{data}, which holds weights of {file.name}, is missing or cut short")
