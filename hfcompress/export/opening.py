"""How each engine opens a file or a checkpoint, and what a file says of itself.

Like the table of engines, this file imports neither torch nor transformers at the top.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import CheckpointError, ExportError, MeasureError
from ..core.model_classes import class_of
from ..core.pretrained import from_pretrained
from .files import require_data

NOTE = "hfcompress.runs_in"  # key of an exported file's metadata: what it runs in
MADE_OF = "hfcompress.made_of"  # another: the files and settings it was made of, as JSON
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


def open_onnx(file: Path, threads: int) -> Run:
    """Return a function that runs an ONNX file with ONNX Runtime on `threads` threads."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError('onnxruntime is not installed; run: pip install "hfcompress[onnx]"') from error
    session = onnxruntime.InferenceSession(str(file), session_options(threads), providers=["CPUExecutionProvider"])
    types = {i.name: _TYPES.get(i.type) for i in session.get_inputs()}
    wanted = head_names([o.name for o in session.get_outputs()])
    alone = len(types) == 1

    def run(inputs: Mapping[str, Array]) -> Array:
        if alone and (pixels := inputs.get("pixel_values")) is not None:  # by whatever name
            inputs = dict.fromkeys(types, pixels)
        return joined(session.run(wanted, {n: np.asarray(given(n, inputs), dtype) for n, dtype in types.items()}))

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


_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32,
          "tensor(float16)": np.float16, "tensor(bool)": np.bool_}  # fmt: skip


def import_pytorch(source: Source, auto_class: str) -> None:
    """Import torch, transformers, and the file that defines the model's class, which loads with its first use."""
    import transformers

    from .. import checkpoint  # noqa: F401

    # what is wrong with a checkpoint, opening it says
    with contextlib.suppress(OSError, ValueError, KeyError, CheckpointError):
        config = from_pretrained(transformers.AutoConfig, source.checkpoint, revision=source.revision or "main")
        class_of(source.auto_class or auto_class, config)


def head_names(names: Sequence[str]) -> list[str]:
    """Return which of a model's outputs are those of its head: its logits, of several kinds where it has such.

    Of a question's answer these are where it begins and ends, of objects what and where. Else it is the first.
    """
    if "logits" in names:
        return [name for name in ("logits", "pred_boxes") if name in names]
    return [name for name in names if "logits" in name] or list(names[:1])


def head_outputs(made: Any) -> dict[str, Any]:
    """Return the outputs of a model's head by name, of what it puts out."""
    names = [name for name, value in made.items() if name != "loss" and hasattr(value, "shape")]
    return {name: made[name] for name in head_names(names)}


def joined(outputs: Sequence[Array]) -> Array:
    """Return several outputs as one array, a row for each of them in every example; flat where shapes differ."""
    if len(outputs) == 1:
        return outputs[0]
    if len({each.shape for each in outputs}) == 1:
        return np.stack(outputs, axis=1)
    return np.concatenate([each.reshape(len(each), -1) for each in outputs], axis=1)


def open_pytorch(source: Source, threads: int, auto_class: str) -> Run:
    """Return a function that runs a checkpoint as it is in PyTorch, on `threads` threads."""
    return _pytorch(source, threads, auto_class, lambda model: model)


def compiling(*, dynamic: bool) -> Callable[[Source, int, str], Run]:
    """Return what opens a checkpoint under torch.compile: once for all shapes (`dynamic`), or anew for each."""

    def opened(source: Source, threads: int, auto_class: str) -> Run:
        from .compiled import compiled

        return _pytorch(source, threads, auto_class, lambda model: compiled(model, dynamic=dynamic))

    return opened


def import_compiled(source: Source, auto_class: str) -> None:
    """Import the same, and the compiler."""
    import_pytorch(source, auto_class)
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
            return joined([each.float().numpy() for each in head_outputs(model(**tensors, return_dict=True)).values()])

    return run


def open_openvino(file: Path, threads: int) -> Run:
    """Return a function that runs an OpenVINO file on `threads` threads of the CPU."""
    request = compile_openvino(file, threads).create_infer_request()
    names = [port.get_any_name() for port in request.model_inputs]
    wanted = head_names([port.get_any_name() for port in request.model_outputs])

    def run(inputs: Mapping[str, Array]) -> Array:
        request.infer({name: given(name, inputs) for name in names}, share_inputs=True)
        return joined([request.get_tensor(name).data.copy() for name in wanted])

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
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": DYNAMIC_GROUP if "int8" in openvino_note(file) else 0,
    }
    return core.compile_model(model, "CPU", settings)


def openvino_note(file: Path, key: str = NOTE) -> str:
    """Return what an OpenVINO file of ours says of itself under `key`; nothing of another tool's."""
    import openvino

    model = openvino.Core().read_model(str(file))
    return str(model.get_rt_info(path).value) if model.has_rt_info(path := rt_info(key)) else ""


def rt_info(key: str) -> list[str]:
    """Return where an OpenVINO file holds what lies under `key` of an ONNX file's metadata."""
    return key.split(".")


def onnx_note(file: Path, key: str = NOTE) -> str:
    """Return what an ONNX file of ours says of itself under `key`; nothing of another tool's.

    Raises ExportError when weights of it are not there.
    """
    import onnx

    proto = onnx.load(str(file), load_external_data=False)
    require_data(proto, file)
    return next((p.value for p in proto.metadata_props if p.key == key), "")
