"""What was measured of a model, kept in the run folder under all it depends on, so that none is measured twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..core.files import writing
from ..export.runtime import Source, engine
from .environment import environment
from .size import local_folder, weight_files
from .statistics import Array

_NAME = "kept"


def keeping(folder: Path | None, key: Callable[[], str], compute: Callable[[], Array]) -> Array:
    """Return what lies in `folder` under the key, else what `compute` gives, and keep that; None: keep nothing."""
    if folder is None:
        return compute()
    path = folder / f"{key()}.safetensors"
    try:
        return load_file(path)[_NAME]
    except (OSError, SafetensorError, KeyError):  # not there, or cut short
        found = compute()
    with writing(path) as temporary:
        save_file({_NAME: found}, temporary)
    return found


def measured_key(source: Source, engine_name: str, inputs: Sequence[Path], threads: int, what: str) -> str:
    """Return the SHA-256 of what decides what is measured: the files' contents, the inputs', engine and machine."""
    parts = [_digest(file) for file in [*model_files(source, engine_name), *inputs]]
    settings = [engine_name, source.dtype, what, environment(threads)]
    return hashlib.sha256(json.dumps([*parts, *settings], sort_keys=True).encode()).hexdigest()


def model_files(source: Source, engine_name: str) -> list[Path]:
    """Return the files that an engine reads of a model: its export, with what lies beside it, or the checkpoint's."""
    file = engine(engine_name).file
    if file is not None:
        path = source.export(file)
        return sorted(p for p in path.parent.glob(f"{path.stem}.*") if p.is_file())
    folder = local_folder(source.checkpoint, source.revision)
    return [folder / "config.json", *(folder / name for name in weight_files(folder))]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
