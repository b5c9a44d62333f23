"""The check before code goes up: it gives the same model where this package is not installed."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..checkpoint import load_model
from ..core.errors import PublishError
from .code import Code
from .template import render
from .verify import run_program

_LOGITS = 1e-3  # of the largest, in float32: same weights, but in memory at other addresses
_ROUNDED = 3e-2  # in 16 bits


@dataclass(frozen=True)
class Load:
    """A checkpoint to be loaded without this package: what loads it, as what, its inputs, where tensors are put."""

    folder: str
    auto_class: str
    dtype: str
    inputs: str
    output: str


def check_code(model: Path, code: Code, auto_class: str, dtype: str, inputs: Mapping[str, Tensor]) -> None:
    """Load the checkpoint in the folder `model` by its code alone, and compare weights and logits with the usual load.

    Raises PublishError when it does not load, or gives another model.
    """
    with staged(model, code) as folder, tempfile.TemporaryDirectory() as place:
        load = Load(str(folder), auto_class, dtype, f"{place}/inputs.safetensors", f"{place}/found.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, load.inputs)
        load_alone([load])
        reason = difference(load_model(model, auto_class, dtype=dtype), load)
    if reason:
        raise PublishError(
            f"the code to go up gives another model than hfcompress itself, nothing was pushed: {reason}"
        )


@contextlib.contextmanager
def staged(model: Path, code: Code) -> Iterator[Path]:
    """Yield a folder that holds what the repository will: the checkpoint's files, by links, and its code."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-with-code-") as place:
        for path in model.iterdir():
            if path.name not in code.files:
                Path(place, path.name).symlink_to(path.resolve())
        for name, content in code.files.items():
            Path(place, name).write_bytes(content)
        yield Path(place)


def load_alone(loads: Sequence[Load], timeout_s: float = 600.0) -> None:
    """Load checkpoints one after the other in one process that cannot import this package; PublishError if it fails."""
    jobs = json.dumps([asdict(load) for load in loads])
    run_program(render("load_alone.py.jinja"), "loading the model by its code alone", timeout_s, jobs)


def difference(model: nn.Module, load: Load) -> str | None:
    """Say in what `model` differs from the one that was loaded alone, None when in nothing."""
    found = load_file(load.output)
    logits = found.pop("logits")
    state = {f"state.{name}": tensor for name, tensor in model.state_dict().items()}
    if state.keys() != found.keys():
        return f"it has other tensors: {', '.join(sorted(state.keys() ^ found.keys())[:3])}"
    for name, tensor in state.items():
        if tensor.dtype != found[name].dtype or not torch.equal(tensor, found[name]):
            return f"its {name.removeprefix('state.')} is another"
    with torch.inference_mode():
        ours = model(**load_file(load.inputs)).logits
    limit = (_LOGITS if ours.dtype == torch.float32 else _ROUNDED) * ours.abs().max()
    if ours.shape != logits.shape or not bool((ours - logits).abs().max() <= limit):
        return "its logits differ"
    return None
