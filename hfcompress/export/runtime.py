"""Engines: each opens a checkpoint or an export and turns a batch of arrays into logits.

This file imports neither torch nor transformers at the top, so that a process that measures another engine holds
neither. Adding an engine is one function and one entry in `ENGINES`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ExportError, MeasureError, nearest
from .compiled import lacks_compiler

NOTE = "hfcompress.runs_in"  # key of an exported file's metadata: what it runs in
RT_INFO = NOTE.split(".")  # the same in an OpenVINO file
ONNX = "onnxruntime"
DYNAMIC_GROUP = 32  # columns of an input that OpenVINO rounds together where weights are compressed
Array = np.ndarray
Run = Callable[[Mapping[str, Array]], Array]


@dataclass(frozen=True)
class Source:
    """Where an engine finds a model: the checkpoint (folder or Hub id), and the folder that holds its exports."""

    checkpoint: str
    exports: str | None = None  # None: inside the checkpoint's folder
    revision: str | None = None
    dtype: str = "float32"  # of the weights in PyTorch; "auto": as stored
    calibration: str | None = None  # file of batches on which an export's activations get their grids
    image_size: int | None = None  # pixels per side of what its processor gives; None: what its config says
    auto_class: str | None = None  # whose from_pretrained loads it; None: that of the models beside it
    skips: dict[str, str] | None = None  # engines that cannot run it, and why

    @property
    def is_onnx(self) -> bool:
        """Whether it is an ONNX file and no checkpoint."""
        return self.checkpoint.endswith(".onnx")

    def export(self, file: str) -> Path:
        """Return the path of an exported file; ExportError when it is not there."""
        path = Path(self.checkpoint) if self.is_onnx else Path(self.exports or self.checkpoint) / file
        if not path.is_file():
            raise ExportError(f"{path} does not exist; export the model first (hfcompress bench does)")
        return path

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `Source(**values)` reverses it."""
        return asdict(self)


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
    note: Callable[[Path], str] = lambda file: ""  # what a file says it runs in
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


def open_onnx(file: Path, threads: int) -> Run:
    """Return a function that runs an ONNX file with ONNX Runtime on `threads` threads."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError('onnxruntime is not installed; run: pip install "hfcompress[onnx]"') from error
    session = onnxruntime.InferenceSession(str(file), session_options(threads), providers=["CPUExecutionProvider"])
    types = {i.name: _TYPES.get(i.type) for i in session.get_inputs()}
    outputs = [o.name for o in session.get_outputs()]
    wanted = ["logits"] if "logits" in outputs else outputs[:1]
    alone = len(types) == 1

    def run(inputs: Mapping[str, Array]) -> Array:
        if alone and (pixels := inputs.get("pixel_values")) is not None:  # by whatever name
            inputs = dict.fromkeys(types, pixels)
        return session.run(wanted, {name: np.asarray(given(name, inputs), dtype) for name, dtype in types.items()})[0]

    return run


def session_options(threads: int) -> Any:
    """Return how ONNX Runtime is to open a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def given(name: str, inputs: Mapping[str, Array]) -> Array:
    """Return the input called `name`, or what a tokenizer that leaves it out means: all seen, all of the first type."""
    if name in inputs:
        return inputs[name]
    if name == "attention_mask":
        return np.ones_like(inputs["input_ids"])
    if name == "token_type_ids":
        return np.zeros_like(inputs["input_ids"])
    raise MeasureError(f"the batch has no {name!r}, which the export needs; it has {', '.join(inputs)}")


def _import_pytorch(source: Source, auto_class: str) -> None:
    """Import torch, transformers, and the file that defines the model's class, which loads with its first use."""
    import transformers

    from .. import checkpoint  # noqa: F401

    with contextlib.suppress(OSError, ValueError, KeyError):  # what is wrong with a checkpoint, opening it says
        config = transformers.AutoConfig.from_pretrained(source.checkpoint, revision=source.revision or "main")
        getattr(transformers, source.auto_class or auto_class)._model_mapping[type(config)]


def _importing(package: str) -> Callable[[Source, str], None]:
    def imports(source: Source, auto_class: str) -> None:
        importlib.import_module(package)

    return imports


_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32,
          "tensor(float16)": np.float16, "tensor(bool)": np.bool_}  # fmt: skip


def main_output(made: Any) -> Any:
    """Return the logits of what a model puts out, or, of a model without a head, its last hidden state."""
    found = getattr(made, "logits", None)
    return made[0] if found is None else found


def _open_pytorch(source: Source, threads: int, auto_class: str) -> Run:
    return _pytorch(source, threads, auto_class, lambda model: model)


def _compiled(*, dynamic: bool) -> Callable[[Source, int, str], Run]:
    def opened(source: Source, threads: int, auto_class: str) -> Run:
        from .compiled import compiled

        return _pytorch(source, threads, auto_class, lambda model: compiled(model, dynamic=dynamic))

    return opened


def _import_compiled(source: Source, auto_class: str) -> None:
    _import_pytorch(source, auto_class)
    importlib.import_module("torch._inductor.compile_fx")


def _pytorch(source: Source, threads: int, auto_class: str, prepared: Callable[[Any], Any]) -> Run:
    import inspect

    import torch

    from ..checkpoint import load_model, own_memory_

    torch.set_num_threads(threads)
    model = load_model(source.checkpoint, auto_class, revision=source.revision, dtype=source.dtype)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # one pass over the whole text, as exports make it
    own_memory_(model)
    accepted = inspect.signature(model.forward).parameters
    model = prepared(model)

    def run(inputs: Mapping[str, Array]) -> Array:
        tensors = {name: torch.from_numpy(a) for name, a in inputs.items() if name in accepted and name != "labels"}
        with torch.inference_mode():
            return main_output(model(**tensors, return_dict=True)).float().numpy()

    return run


def open_openvino(file: Path, threads: int) -> Run:
    """Return a function that runs an OpenVINO file on `threads` threads of the CPU."""
    request = compile_openvino(file, threads).create_infer_request()
    names = [port.get_any_name() for port in request.model_inputs]

    def run(inputs: Mapping[str, Array]) -> Array:
        request.infer({name: given(name, inputs) for name in names}, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return run


def compile_openvino(file: Path, threads: int) -> Any:
    """Return the compiled model of an OpenVINO file: what is not int8 in the file is computed in float32.

    Left alone, OpenVINO computes in bfloat16 where the CPU can, and rounds what meets compressed weights to int8.
    """
    try:
        import openvino
    except ImportError as error:
        raise ExportError('openvino is not installed; run: pip install "hfcompress[openvino]"') from error
    core = openvino.Core()
    model = core.read_model(str(file))
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": DYNAMIC_GROUP if "int8" in _openvino_note(file) else 0,
    }
    return core.compile_model(model, "CPU", settings)


def _openvino_note(file: Path) -> str:
    import openvino

    model = openvino.Core().read_model(str(file))
    return str(model.get_rt_info(RT_INFO).value) if model.has_rt_info(RT_INFO) else ""


def _onnx_note(file: Path) -> str:
    import onnx

    proto = onnx.load(str(file), load_external_data=False)
    return next((p.value for p in proto.metadata_props if p.key == NOTE), "")


def _reading(file: str, run: Callable[[Path, int], Run], **more: Any) -> Engine:
    """Return an engine that reads an exported file."""

    def opened(source: Source, threads: int, auto_class: str) -> Run:
        return run(source.export(file), threads)

    return Engine(opened, file, run, **more)


def _onnx(file: str, **more: Any) -> Engine:
    packages = ("onnx", "onnxruntime", "onnxscript")
    known: dict[str, Any] = {"packages": packages, "note": _onnx_note, "imports": _importing("onnxruntime")}
    return _reading(file, open_onnx, **known, **more)


def _openvino(file: str, calibrated: bool = False) -> Engine:
    packages = ("onnx", "onnxscript", "openvino", *(("nncf",) if calibrated else ()))
    known: dict[str, Any] = {"packages": packages, "note": _openvino_note, "extra": "openvino"}
    known["imports"] = _importing("openvino")
    return _reading(file, open_openvino, calibrated=calibrated, **known)


ENGINES: dict[str, Engine] = {
    "pytorch": Engine(_open_pytorch, imports=_import_pytorch),
    "pytorch-compile": Engine(
        _compiled(dynamic=False),
        open_any=_compiled(dynamic=True),
        compiles=True,
        imports=_import_compiled,
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
