"""The table of engines: each opens a checkpoint or an export and turns a batch of arrays into logits.

This file imports neither torch nor transformers at the top, so that a process that measures another engine holds
neither. Adding an engine is one function in `opening` and one entry in `ENGINES`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ExportError, MeasureError, nearest
from .compiled import lacks_compiler
from .opening import (
    Run,
    Source,
    compiling,
    import_compiled,
    import_pytorch,
    onnx_note,
    open_onnx,
    open_openvino,
    open_pytorch,
    openvino_note,
)

ONNX = "onnxruntime"


@dataclass(frozen=True)
class Engine:
    """One way to execute a model: how to open it, and which exported file it reads (None: the checkpoint)."""

    open: Callable[[Source, int, str], Run]
    file: str | None = None
    run: Callable[[Path, int], Run] | None = None  # opens that file on so many threads
    packages: tuple[str, ...] = ()  # to export for it and to run it
    extra: str = "onnx"  # of this package, which brings them
    weight_bits: int | None = None  # most bits of a weight in the file, where products are of floats all the same
    calibrated: bool = False  # whether it needs examples where the checkpoint has no grids for activations
    note: Callable[..., str] = lambda file, key="": ""  # what a file says it runs in, or of itself under another key
    compiles: bool = False  # whether each new shape takes seconds to minutes before it runs
    open_any: Callable[[Source, int, str], Run] | None = None  # the same for inputs of many shapes; None: `open` is
    lacks: Callable[[], str] = lambda: ""  # what is missing here besides packages, and what mends it
    imports: Callable[[Source, str], None] = lambda source, auto_class: None  # what `open` would import, and no more


def open_engine(name: str, source: Source, threads: int, auto_class: str, *, any_shape: bool = False) -> Run:
    """Return a function from named arrays to logits; MeasureError names the nearest engine when `name` is none.

    `any_shape`: inputs will come in many shapes, each but once or twice, so that none is worth preparing for.
    """
    found = engine(name)
    opened = found.open_any if any_shape and found.open_any else found.open
    return opened(source, threads, source.auto_class or auto_class)


def why_not(name: str, source: Source) -> str:
    """Say why the engine called `name` does not run what `source` names; nothing when it does."""
    if source.is_onnx and name != ONNX:
        return f"an ONNX file is timed as it is, in {ONNX}"
    return (source.skips or {}).get(name, "")


def engine(name: str) -> Engine:
    """Return the engine called `name`; MeasureError names the nearest when there is none."""
    if name not in ENGINES:
        raise MeasureError(f"no engine is called {name!r}.{nearest(name, ENGINES)}")
    return ENGINES[name]


def require_engine(name: str) -> None:
    """Raise ExportError, before any work is done, when what an engine needs is not installed."""
    missing = [p for p in engine(name).packages if importlib.util.find_spec(p) is None]
    if missing:
        raise ExportError(f'{name} needs {", ".join(missing)}; run: pip install "hfcompress[{engine(name).extra}]"')
    if lacking := engine(name).lacks():
        raise ExportError(f"{name} needs {lacking}")


def require_any_length(name: str) -> None:
    """Raise MeasureError when an engine would prepare for each length anew before it runs."""
    found = engine(name)
    if found.compiles and found.open_any is None:
        raise MeasureError(f"{name} prepares for one shape at a time: it cannot be timed on examples of any length")


def _importing(package: str) -> Callable[[Source, str], None]:
    def imports(source: Source, auto_class: str) -> None:
        importlib.import_module(package)

    return imports


def _reading(file: str, run: Callable[[Path, int], Run], **more: Any) -> Engine:
    """Return an engine that reads an exported file."""

    def opened(source: Source, threads: int, auto_class: str) -> Run:
        return run(source.export(file), threads)

    return Engine(opened, file, run, **more)


def _onnx(file: str, **more: Any) -> Engine:
    packages = ("onnx", "onnxruntime", "onnxscript")
    known: dict[str, Any] = {"packages": packages, "note": onnx_note, "imports": _importing("onnxruntime")}
    return _reading(file, open_onnx, **known, **more)


def _openvino(file: str, calibrated: bool = False) -> Engine:
    packages = ("onnx", "onnxscript", "openvino", *(("nncf",) if calibrated else ()))
    known: dict[str, Any] = {"packages": packages, "note": openvino_note, "extra": "openvino"}
    known["imports"] = _importing("openvino")
    return _reading(file, open_openvino, calibrated=calibrated, **known)


ENGINES: dict[str, Engine] = {
    "pytorch": Engine(open_pytorch, imports=import_pytorch),
    "pytorch-compile": Engine(
        compiling(dynamic=False),
        open_any=compiling(dynamic=True),
        compiles=True,
        imports=import_compiled,
        lacks=lacks_compiler,
    ),
    ONNX: _onnx("onnx/model.onnx"),
    "onnxruntime-int8": _onnx("onnx/model_quantized.onnx"),
    "onnxruntime-static-int8": _onnx("onnx/model_static_quantized.onnx", calibrated=True),
    "onnxruntime-w8": _onnx("onnx/model_w8.onnx", weight_bits=8),
    "onnxruntime-w4": _onnx("onnx/model_w4.onnx", weight_bits=4),
    "openvino": _openvino("openvino/openvino_model.xml"),
    "openvino-int8": _openvino("openvino/openvino_model_qint8_quantized.xml", calibrated=True),
}
