"""Data sets that `save_to_disk` of the datasets library wrote."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_from_disk

from ..core.errors import DataError

_OF_SPLITS, _OF_ONE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"


def is_saved(path: Path) -> bool:
    """Say whether `save_to_disk` made this folder, from one split or from several."""
    return (path / _OF_SPLITS).is_file() or all((path / name).is_file() for name in (_OF_ONE, _INFO))


def open_saved(path: Path, where: str) -> dict[str, Dataset]:
    """Return its splits, mapped from disk; one that was saved by itself is 'train'. DataError when it is damaged."""
    try:
        found = load_from_disk(str(path), keep_in_memory=False)
        splits = dict(found) if isinstance(found, DatasetDict) else {"train": found}
        return {str(name): split.with_format(None) for name, split in splits.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{where}.path: {path} was made by save_to_disk, and cannot be read: {reason}") from error
