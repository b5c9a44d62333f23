"""What a model weighs: files on disk and numbers in memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import Tensor, nn

from ..core.errors import MeasureError
from ..modules.counting import parameter_counts, stated_counts

_FORMATS = (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin"))


def local_folder(checkpoint: str, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint, a Hub id's in the local cache; MeasureError when it is in neither."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(checkpoint, "config.json", revision=revision))).parent
    except OSError as error:
        raise MeasureError(
            f"{checkpoint!r} is neither a folder nor a model on the Hub that can be read: {error}"
        ) from error


def weight_files(folder: str | Path) -> dict[str, int]:
    """Return the weight files `from_pretrained` reads from the folder's top level, with their bytes on disk.

    Where a folder holds several formats only the first that loads counts; MeasureError when there is none.
    """
    folder = Path(folder)
    for single, pattern in _FORMATS:
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return {single: (folder / single).stat().st_size}
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            return {name: (folder / name).stat().st_size for name in names}
        found = sorted(folder.glob(pattern))
        if found:
            return {file.name: file.stat().st_size for file in found}
    raise MeasureError(f"{folder} holds no weight files (*.safetensors or pytorch_model*.bin)")


def checksum(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def export_files(folder: str | Path) -> dict[str, int]:
    """Return the exported files under `folder` (`onnx/…`, `openvino/…`) with their bytes."""
    folder = Path(folder)
    found = sorted(f for kind in ("onnx", "openvino") for f in (folder / kind).glob("*") if f.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in found if not file.name.startswith(".")}


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return how many numbers the model's parameters hold and how many of them are not zero.

    A tensor shared by several modules counts once. A packed parameter counts one number per element of its own shape;
    a module that stores them more tightly says how many there are by attributes `packed_numel` and `packed_nonzeros`,
    each a mapping from parameter name to number.
    """
    total = nonzeros = 0
    for module, name, parameter, number in parameter_counts(model):
        stated = stated_counts(module, "packed_nonzeros").get(name)
        total += number
        nonzeros += min(number, _nonzeros(parameter)) if stated is None else stated
    return total, nonzeros


def _nonzeros(tensor: Tensor) -> int:
    return int(tensor.detach().count_nonzero())
