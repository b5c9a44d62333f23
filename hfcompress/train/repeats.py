"""Examples that occur more than once in a split, and those of them whose labels contradict each other."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from ..recipe.data_report import Repeats
from .example_keys import NO_EXAMPLE
from .rows import HOW, Rows


def repeats(keys: np.ndarray, dataset: Dataset, rows: Rows) -> Repeats | None:
    """Return how many examples of a split repeat, told by their `keys`, (rows,), and their labels; None: none does.

    `rows` are where they come from.
    """
    places = np.flatnonzero(keys != NO_EXAMPLE)
    _, which, counts = np.unique(keys[places], return_inverse=True, return_counts=True)
    if not (counts > 1).any():
        return None
    differs = _differing(dataset, places, which, len(counts))
    return Repeats(
        what=_called(dataset),
        examples=int((counts > 1).sum()),
        rows=int(counts[counts > 1].sum()),
        contradictory=len(np.unique(which[differs])),
        shown=_shown(places, which, differs, rows),
    )


def _differing(dataset: Dataset, places: np.ndarray, which: np.ndarray, count: int) -> np.ndarray:
    """Return which of these rows have another label than the first with the same example, (rows,) of bool."""
    if "label" not in dataset.column_names:
        return np.zeros(len(places), dtype=bool)
    labels = np.asarray(dataset["label"][:])[places]
    first = np.full(count, len(places))
    np.minimum.at(first, which, np.arange(len(places)))
    return np.asarray(labels != labels[first[which]], dtype=bool)


def _shown(places: np.ndarray, which: np.ndarray, differs: np.ndarray, rows: Rows) -> str:
    if not differs.any():
        return ""
    other = int(differs.argmax())
    first = int((which == which[other]).argmax())
    return f"such as {rows.called(int(places[first]))} and {rows.called(int(places[other]))}; {HOW}"


def _called(dataset: Dataset) -> str:
    if "image" in dataset.column_names:
        return "image"
    return "pair of texts" if "text_pair" in dataset.column_names else "text"
