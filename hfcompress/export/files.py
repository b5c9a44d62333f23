"""An export on disk: one file, and where its format wants it the weights in another beside it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ExportError, HFCompressError

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

LIMIT = 2_000_000_000  # bytes of weights inside an ONNX file: protobuf takes 2**31 - 1, and the graph is in it too
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

    The target vanishes first and comes last: there is never one beside another's weights. Raises HFCompressError, in
    place of OSError, when the folder cannot be written or is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise HFCompressError(f"cannot write {target}: {error.strerror}") from error
    written = folder / target.name
    try:
        yield written
        target.unlink(missing_ok=True)
        beside(target).unlink(missing_ok=True)
        for file in (beside(written), written):
            if file.exists():
                file.chmod(0o644)
                file.replace(target.with_name(file.name))
    except OSError as error:
        raise HFCompressError(f"cannot write {target}: {error.strerror}") from error
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
    for tensor in proto.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if name := place.get("location"):
            found[name] = max(found.get(name, 0), int(place.get("offset", 0)) + int(place.get("length", 0)))
    return found


def require_data(proto: ModelProto, file: Path) -> None:
    """Raise ExportError when a file in which the weights of the graph in `file` lie is missing or cut short."""
    for name, size in data_files(proto).items():
        data = file.parent / name
        if not data.is_file() or data.stat().st_size < size:
            raise ExportError(f"{data}, which holds weights of {file.name}, is missing or cut short")
