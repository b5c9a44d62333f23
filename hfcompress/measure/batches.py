"""Batches of arrays in safetensors files, so that every process reads the same examples, one batch at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..core.errors import MeasureError
from ..core.files import writing
from ..ops.scaled import Scaled

Array = np.ndarray

SHARD_BYTES = 1 << 28  # what is held in memory while batches are written
_SHARDS = "shards"  # key of a file's metadata: how many of them lie beside it
_SCALE, _OFFSET = "/scale", "/offset"  # ends of the names of what makes float32 values of whole numbers


def write_batches(path: str | Path, batches: Iterable[Mapping[str, Any]]) -> int:
    """Write batches of tensors or arrays under keys ``{index:05d}.{name}`` and return how many there were.

    No more than `SHARD_BYTES` and a batch lie in memory: what is beyond goes to files ``{stem}.{number:05d}{suffix}``
    beside `path`, which is written last. Values that are no arrays are left out; MeasureError when there is no batch.
    """
    path = Path(path)
    for old in (path, *_beside(path)):  # while there is no file at `path`, there are no batches
        old.unlink(missing_ok=True)
    arrays: dict[str, Array] = {}
    count = size = shards = 0
    for count, batch in enumerate(batches, 1):
        if size >= SHARD_BYTES:
            _write(_shard(path, shards), arrays)
            arrays, size, shards = {}, 0, shards + 1
        new = {f"{count - 1:05d}.{name}": np.ascontiguousarray(value) for name, value in _arrays(batch)}
        arrays |= new
        size += sum(array.nbytes for array in new.values())
    if not count:
        raise MeasureError(f"there is no batch to write to {path}: the evaluation split is empty")
    _write(path, arrays, shards)
    return count


def read_batches(path: str | Path) -> Iterator[dict[str, Array]]:
    """Yield the batches of `write_batches` in order, one in memory at a time; MeasureError for any other file."""
    for file in batch_files(path):
        with _opened(file) as opened:
            for keys in _by_batch(opened).values():
                yield _values({key.partition(".")[2]: opened.get_tensor(key) for key in keys})


def count_batches(path: str | Path) -> int:
    """Return how many batches `write_batches` wrote; MeasureError for any other file."""
    count = 0
    for file in batch_files(path):
        with _opened(file) as opened:
            count += len(_by_batch(opened))
    return count


def batch_files(path: str | Path) -> list[Path]:
    """Return the files that hold the batches of `path`, in order; MeasureError when one is missing."""
    path = Path(path)
    with _opened(path) as opened:
        shards = int((opened.metadata() or {}).get(_SHARDS, 0))
    return [*(_shard(path, number) for number in range(shards)), path]


def _arrays(batch: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in batch.items():
        if isinstance(value, Scaled):
            yield from ((name, value.whole), (name + _SCALE, value.scale), (name + _OFFSET, value.offset))
        elif hasattr(value, "shape"):
            yield name, value


def _values(stored: Mapping[str, Array]) -> dict[str, Array]:
    """Return a batch as it is meant, from what `_arrays` made of it."""
    found = {name: array for name, array in stored.items() if not name.endswith((_SCALE, _OFFSET))}
    for name, whole in found.items():
        if name + _SCALE in stored:
            found[name] = Scaled(whole, stored[name + _SCALE], stored[name + _OFFSET]).values()
    return found


def _write(path: Path, arrays: Mapping[str, Array], shards: int = 0) -> None:
    with writing(path) as temporary:
        save_file(dict(arrays), str(temporary), metadata={_SHARDS: str(shards)} if shards else None)


def _shard(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number:05d}{path.suffix}")


def _beside(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.stem}.[0-9][0-9][0-9][0-9][0-9]{path.suffix}"))


def _by_batch(opened: Any) -> dict[str, list[str]]:
    """Return the keys of each batch of an open file."""
    batches: dict[str, list[str]] = {}
    for key in sorted(opened.keys()):
        batches.setdefault(key.partition(".")[0], []).append(key)
    return batches


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """Open a file of batches; what is wrong with it, then or while it is read, is a MeasureError."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise MeasureError(f"{path} does not hold evaluation batches: {error}") from error
