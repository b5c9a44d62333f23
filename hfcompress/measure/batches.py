"""Batches of arrays in one safetensors file, so that every process reads the same examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..core.errors import MeasureError
from ..core.files import writing

Array = np.ndarray


def write_batches(path: str | Path, batches: Iterable[Mapping[str, Any]]) -> int:
    """Write batches of tensors or arrays under keys ``{index:05d}.{name}`` and return how many there were.

    Values that are neither are left out; MeasureError when there is no batch.
    """
    arrays: dict[str, Array] = {}
    count = 0
    for index, batch in enumerate(batches):
        count += 1
        for name, value in batch.items():
            if hasattr(value, "shape"):
                arrays[f"{index:05d}.{name}"] = np.ascontiguousarray(value)
    if not count:
        raise MeasureError(f"there is no batch to write to {path}: the evaluation split is empty")
    with writing(path) as temporary:
        save_file(arrays, str(temporary))
    return count


def read_batches(path: str | Path) -> Iterator[dict[str, Array]]:
    """Yield the batches of `write_batches` in order, one in memory at a time; MeasureError for any other file."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            batches: dict[str, list[str]] = {}
            for key in sorted(file.keys()):
                batches.setdefault(key.partition(".")[0], []).append(key)
            for keys in batches.values():
                yield {key.partition(".")[2]: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as error:
        raise MeasureError(f"{path} does not hold evaluation batches: {error}") from error
