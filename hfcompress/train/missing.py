"""Rows that lack a label, a text or an image: an error, or left out and counted where the recipe says so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..core.errors import DataError
from .rows import HOW, Rows, own_columns

_WHAT = (
    "null, an empty or blank cell, and in CSV and TSV also NA, NaN, null and None, as pandas and `datasets` read them"
)


@dataclass
class MissingValues:
    """What to do about rows with missing values, and how many were left out of each split so far."""

    drop: bool = False
    blank_lines: bool = False  # whether a blank text is one, as the empty lines of running text are
    dropped: dict[str, int] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)  # what lacks a value and may not go, by split and column

    def clean(self, dataset: Dataset, split: str, rows: Rows) -> Dataset:
        """Return the rows that have a value in every column; all of them where none may go: see `refuse`."""
        found = {name: self._missing(dataset, name) for name in own_columns(dataset)}
        if not self.drop:
            told = [_told(mask, name, rows) for name, mask in found.items() if mask.any()]
            self.found += [f"split {split!r}: {'; '.join(told)}"] if told else []
            return dataset
        return self.without(dataset, np.any(list(found.values()), axis=0), split)

    def refuse(self) -> None:
        """Raise DataError that names every column with a missing value, where no row may be left out."""
        if self.found:
            raise DataError(
                f"{'; '.join(self.found)} ({HOW}; missing is {_WHAT}). Fill or remove them, or set data.drop_missing: "
                "true to leave these rows out."
            )

    def without(self, dataset: Dataset, missing: np.ndarray, split: str) -> Dataset:
        """Return the rows that are not `missing`, (rows,) of bool, and count those; DataError when none is left."""
        if not missing.any():
            return dataset
        if missing.all():
            raise DataError(f"split {split!r}: every row lacks a value ({_WHAT}): none is left.")
        self.dropped[split] = self.dropped.get(split, 0) + int(missing.sum())
        return dataset.select(np.flatnonzero(~missing))

    def _missing(self, dataset: Dataset, name: str) -> np.ndarray:
        column = dataset.select_columns([name]).with_format("arrow")[:][name]
        masks = [_is_missing(chunk, blank=not self.blank_lines) for chunk in _chunks(column)]
        return np.concatenate(masks) if masks else np.zeros(0, dtype=bool)


def _chunks(column: Any) -> Iterable[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _is_missing(values: pa.Array, *, blank: bool) -> np.ndarray:
    """Return which values of an array hold nothing, (rows,) of bool; `blank`: spaces alone are nothing."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    kind = values.type
    missing = [values.is_null(nan_is_null=True)]
    if pa.types.is_struct(kind) and {f.name for f in kind} >= {"bytes", "path"}:  # an image
        missing.append(pc.and_(_nothing(values.field("bytes")), _nothing(values.field("path"))))
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        missing.append(_nothing(values))
    elif blank and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        missing += [_nothing(values), pc.utf8_is_space(values)]
    return np.any([np.asarray(pc.fill_null(mask, True), dtype=bool) for mask in missing], axis=0)


def _nothing(values: pa.Array) -> pa.Array:
    """Return whether texts or bytes are null or empty."""
    if pa.types.is_null(values.type):
        return values.is_null()
    return pc.fill_null(pc.equal(pc.binary_length(values), 0), True)


def _told(missing: np.ndarray, column: str, rows: Rows) -> str:
    """Return how many values of a column are missing, and in which rows the first are."""
    places = np.flatnonzero(missing)
    values = "value" if len(places) == 1 else "values"
    return f"column {column!r} has {len(places):,} missing {values}, the first in {rows.first(places.tolist())}"
