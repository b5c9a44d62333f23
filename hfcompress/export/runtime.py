"""Engines: each opens a checkpoint or an export and turns a batch of arrays into logits.

This file imports neither torch nor transformers at the top, so that a process that measures another engine holds
neither. Adding an engine is one function and one entry in `ENGINES`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..core.errors import ExportError, MeasureError, nearest

NOTE = "hfcompress.runs_in"  # key of an exported file's metadata: what it runs in
Array = np.ndarray
Run = Callable[[Mapping[str, Array]], Array]


@dataclass(frozen=True)
class Source:
    """Where an engine finds a model: the checkpoint (folder or Hub id), and the folder that holds its exports."""

    checkpoint: str
    exports: str | None = None  # None: inside the checkpoint's folder
    revision: str | None = None
    dtype: str = "float32"  # of the weights in PyTorch; "auto": as stored

    def export(self, file: str) -> Path:
        """Return the path of an exported file; ExportError when it is not there."""
        path = Path(self.exports or self.checkpoint) / file
        if not path.is_file():
            raise ExportError(f"{path} does not exist; export the model first (hfcompress bench does)")
        return path

    def to_json(self) -> dict[str, str | None]:
        """Return plain values; `Source(**values)` reverses it."""
        return asdict(self)


@dataclass(frozen=True)
class Engine:
    """One way to execute a model: how to open it, and which exported file it reads (None: the checkpoint)."""

    open: Callable[[Source, int, str], Run]
    file: str | None = None
    packages: tuple[str, ...] = ()  # to export for it and to run it
    note: Callable[[Path], str] = lambda file: ""  # what a file says it runs in


def open_engine(name: str, source: Source, threads: int, auto_class: str) -> Run:
    """Return a function from named arrays to logits; MeasureError names the nearest engine when `name` is none."""
    return engine(name).open(source, threads, auto_class)


def engine(name: str) -> Engine:
    """Return the engine called `name`; MeasureError names the nearest when there is none."""
    if name not in ENGINES:
        raise MeasureError(f"no engine is called {name!r}.{nearest(name, ENGINES)}")
    return ENGINES[name]


def require_engine(name: str) -> None:
    """Raise ExportError, before any work is done, when the packages of an engine are not installed."""
    missing = [p for p in engine(name).packages if importlib.util.find_spec(p) is None]
    if missing:
        raise ExportError(f'{name} needs {", ".join(missing)}; run: pip install "hfcompress[onnx]"')


def open_onnx(file: Path, threads: int) -> Run:
    """Return a function that runs an ONNX file with ONNX Runtime on `threads` threads."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError('onnxruntime is not installed; run: pip install "hfcompress[onnx]"') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(inputs: Mapping[str, Array]) -> Array:
        return session.run(["logits"], {name: _given(name, inputs) for name in names})[0]

    return run


def _given(name: str, inputs: Mapping[str, Array]) -> Array:
    """Return the input called `name`, or what a tokenizer that leaves it out means: all seen, all of the first type."""
    if name in inputs:
        return inputs[name]
    if name == "attention_mask":
        return np.ones_like(inputs["input_ids"])
    if name == "token_type_ids":
        return np.zeros_like(inputs["input_ids"])
    raise MeasureError(f"the batch has no {name!r}, which the export needs; it has {', '.join(inputs)}")


def _open_pytorch(source: Source, threads: int, auto_class: str) -> Run:
    import inspect

    import torch

    from ..checkpoint import load_model, own_memory_

    torch.set_num_threads(threads)
    model = load_model(source.checkpoint, auto_class, revision=source.revision, dtype=source.dtype)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # one pass over the whole text, as exports make it
    own_memory_(model)
    accepted = inspect.signature(model.forward).parameters

    def run(inputs: Mapping[str, Array]) -> Array:
        tensors = {name: torch.from_numpy(a) for name, a in inputs.items() if name in accepted and name != "labels"}
        with torch.inference_mode():
            return model(**tensors, return_dict=True).logits.float().numpy()

    return run


def _onnx_note(file: Path) -> str:
    import onnx

    proto = onnx.load(str(file), load_external_data=False)
    return next((p.value for p in proto.metadata_props if p.key == NOTE), "")


def _open_onnxruntime(file: str) -> Callable[[Source, int, str], Run]:
    return lambda source, threads, auto_class: open_onnx(source.export(file), threads)


def _onnx(file: str) -> Engine:
    return Engine(_open_onnxruntime(file), file, ("onnx", "onnxruntime", "onnxscript"), _onnx_note)


ENGINES: dict[str, Engine] = {
    "pytorch": Engine(_open_pytorch),
    "onnxruntime": _onnx("onnx/model.onnx"),
    "onnxruntime-int8": _onnx("onnx/model_quantized.onnx"),
}
