"""What a row is called in a message: by its number in the split it comes from, as people count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

HOW = "rows count from 1, without a header"  # to be said wherever a row is
_PLACE = "place of the row"  # of a column that goes along while rows are left out and drawn
_SHOWN = 5


@dataclass(frozen=True)
class Rows:
    """Where the rows of some examples come from: `parts`, of splits, one after the other, and places in these."""

    parts: Sequence[tuple[str, range]] = ()
    places: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def called(self, row: int) -> str:
        """Return what a row is called, such as ``row 3 of 'train'``."""
        number, split = self._found(row)
        return f"row {number:,} of '{split}'" if split else f"row {number:,}"

    def first(self, rows: Sequence[int]) -> str:
        """Return the first few of several rows in words, the split only where there are several."""
        if len({split for split, _ in self.parts}) > 1:
            return ", ".join(self.called(row) for row in rows[:_SHOWN])
        return _listed([f"{self._found(row)[0]:,}" for row in rows])

    def _found(self, row: int) -> tuple[int, str]:
        """Return the number of a row, from 1, and the split it stands in; "" where that is not known."""
        place = int(self.places[row]) if row < len(self.places) else row
        for split, rows in self.parts:
            if place < len(rows):
                return rows[place] + 1, split
            place -= len(rows)
        return place + 1, ""


def with_places(dataset: Dataset) -> Dataset:
    """Return a dataset that knows where each of its rows stands in it now, whatever is left out afterwards."""
    return dataset.add_column(_PLACE, np.arange(len(dataset)))


def without_places(dataset: Dataset, parts: Sequence[tuple[str, range]]) -> tuple[Dataset, Rows]:
    """Return a dataset as it was before `with_places`, and the rows of `parts` that it consists of."""
    return dataset.remove_columns(_PLACE), Rows(parts, np.asarray(dataset[_PLACE][:], dtype=np.int64))


def own_columns(dataset: Dataset) -> list[str]:
    """Return the names of the columns that the data has."""
    return [name for name in dataset.column_names if name != _PLACE]


def _listed(numbers: Sequence[str]) -> str:
    shown = ", ".join(numbers[1:_SHOWN])
    return f"row {numbers[0]}" + (f", then {shown}" if shown else "")
