"""The labels of a data set, however they are stored: read into numbers, with what each number is called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Value

from ...core.errors import DataError
from .text import is_text

_SHOWN = 8
_WHOLE = re.compile(r"[+-]?(0|[1-9]\d*)(\.0*)?")  # "1", "-1" and "1.0", but not "007", which is a name
_OF_TRUTH = ("false", "true")


@dataclass(frozen=True)
class DataLabels:
    """The labels of a data set in its own numbers.

    `numbered`: the data says which number a name has; otherwise names stand in alphabetical order, which says nothing.
    """

    names: list[str] | None  # by number; None: the labels are numbers without names
    numbered: bool
    present: tuple[int, ...]  # numbers of which there are examples in any split
    in_training: tuple[int, ...]  # and those in the training split
    merged: tuple[tuple[str, ...], ...] = ()  # ways to write a name that are taken for one
    truth: bool = False  # they are stored as true and false
    counts: Mapping[str, Mapping[int, int]] = field(default_factory=dict)  # rows of each number, by split

    @property
    def named(self) -> bool:
        """Whether the names say something: they are not just numbers, nor the 'LABEL_0' of transformers."""
        return self.names is not None and not unnamed(self.names)

    def called(self, number: int) -> str:
        """Return what the data calls a label: its name, or the number itself."""
        if self.names is not None:
            return self.names[number]
        return _OF_TRUTH[number] if self.truth else str(number)

    def where(self, number: int) -> str:
        """Return in words how many rows of which split have a label."""
        found = {split: counts[number] for split, counts in self.counts.items() if number in counts}
        rows = [f"{count:,} {'row' if count == 1 else 'rows'} of split {split!r}" for split, count in found.items()]
        return " and ".join(rows) or "no row"

    @property
    def all(self) -> list[int]:
        """The numbers of all labels, also of those that have a name and no example."""
        return list(range(len(self.names))) if self.names is not None else list(self.present)

    def find(self, text: str) -> int | None:
        """Return the number of what is called `text`, by its name or else its number; None when there is none."""
        found = Names([self.called(number) for number in self.all]).find(text)
        if found is not None:
            return self.all[found]
        number = whole(text)
        return number if number in self.all else None


@dataclass
class Names:
    """Names to look a text up in: as it is written, or else without regard to case and blanks around it."""

    names: Sequence[str]
    _exact: dict[str, int] = field(init=False)
    _loose: dict[str, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self._exact, self._loose = {}, {}
        for index, name in enumerate(self.names):
            self._exact.setdefault(name, index)
            self._loose.setdefault(plain(name), []).append(index)

    def find(self, text: str) -> int | None:
        """Return the place of a name; None when it is not there, or several are alike but for their case."""
        found = self._loose.get(plain(text), [])
        return self._exact.get(text, found[0] if len(found) == 1 else None)


def plain(name: str) -> str:
    """Return a name as it is compared: without blanks around it and without regard to case."""
    return " ".join(name.split()).casefold()


def whole(text: str) -> int | None:
    """Return the whole number that a text is, such as '1' or ' 1.0'; None when it is something else."""
    return int(float(text)) if _WHOLE.fullmatch(text.strip()) else None


def unnamed(names: Sequence[str]) -> bool:
    """Say whether names say nothing: 'LABEL_0' of transformers, or the numbers themselves."""
    return all(plain(str(name)) in (f"label_{i}", str(i)) for i, name in enumerate(names))


def show(names: Iterable[str] | None) -> str:
    """Return names as they stand in a message, the first few of many."""
    if names is None:
        return "unnamed"
    names = list(names)
    return ", ".join(map(repr, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")


def read_labels(
    splits: Mapping[str, Dataset], names: list[str] | None, given: Iterable[str] = ()
) -> tuple[dict[str, Dataset], DataLabels]:
    """Return the splits with integers in `label`, and what these are called.

    The names are those of the column's type, else `names` (of a file beside the data), else the labels' own text. The
    first split is the one trained on. `given`: labels that the recipe says something of. Raises DataError that names
    split and label.
    """
    columns = {split: _Column.read(dataset, split) for split, dataset in splits.items()}
    own = next((column.names for column in columns.values() if column.names is not None), None)
    numbered = all(column.numbered for column in columns.values())
    names = own if own is not None else names
    if names is not None and len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise DataError(f"two labels of the data have the same name: {show(twice)}.")
    merged: tuple[tuple[str, ...], ...] = ()
    if names is None and any(column.numbers is None for column in columns.values()):
        names, merged = _names_of(columns.values(), set(given))
        numbered = False
    found = {split: _numbers(column, split, names, given) for split, column in columns.items()}
    counts = {split: _counts(numbers) for split, numbers in found.items()}
    labels = DataLabels(
        names,
        numbered,
        present=tuple(sorted(set().union(*counts.values()))),
        in_training=tuple(next(iter(counts.values()))),
        merged=merged,
        truth=names is None and all(column.truth for column in columns.values()),
        counts=counts,
    )
    feature = ClassLabel(names=names) if names else Value("int64")
    return {split: with_labels(splits[split], numbers, feature) for split, numbers in found.items()}, labels


def _counts(numbers: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(numbers, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def with_labels(dataset: Dataset, numbers: np.ndarray, feature: Any = None) -> Dataset:
    """Return the dataset with these labels instead of its own."""
    return dataset.remove_columns("label").add_column("label", numbers, feature=feature or Value("int64"))


@dataclass(frozen=True)
class _Column:
    """One split's labels: whole numbers, texts without blanks around them, or numbers that are stored as text."""

    numbers: np.ndarray | None
    texts: list[str] | None
    names: list[str] | None = None  # those of the column's type
    numbered: bool = True
    truth: bool = False

    @classmethod
    def read(cls, dataset: Dataset, split: str) -> _Column:
        feature, values = dataset.features["label"], dataset["label"][:]
        kind = getattr(feature, "pa_type", None)
        if isinstance(feature, ClassLabel):
            by_folder = dataset.info.builder_name == "imagefolder"  # which numbers its folders as they are sorted
            return cls(np.asarray(values, dtype=np.int64), None, list(feature.names), not by_folder)
        if is_text(feature):
            texts = [value.strip() for value in values]
            numbers = [whole(text) for text in set(texts)]
            if None not in numbers:
                return cls(np.asarray([whole(text) for text in texts], dtype=np.int64), texts)
            return cls(None, texts)
        if kind is not None and (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            return cls(np.asarray(values, dtype=np.int64), None, truth=pa.types.is_boolean(kind))
        if kind is not None and pa.types.is_floating(kind):
            floats = np.asarray(values, dtype=np.float64)
            if np.array_equal(floats, np.rint(floats)) and np.abs(floats).max(initial=0) < 2**53:
                return cls(floats.astype(np.int64), None)
        raise DataError(f"split {split!r}: column 'label' holds {feature}; labels must be whole numbers or text.")

    def as_texts(self) -> list[str]:
        """Return every label as text."""
        if self.texts is not None:
            return self.texts
        assert self.numbers is not None
        if self.names is not None:
            return [self.names[n] if 0 <= n < len(self.names) else str(n) for n in self.numbers.tolist()]
        return [_OF_TRUTH[n] if self.truth else str(n) for n in self.numbers.tolist()]


def _names_of(columns: Iterable[_Column], given: set[str]) -> tuple[list[str], tuple[tuple[str, ...], ...]]:
    """Return the names that occur, sorted, and those that differ in case or blanks alone, which become the first.

    Where the recipe speaks of several of these, they are names of their own.
    """
    counts: Counter[str] = Counter(text for column in columns for text in column.as_texts())
    alike: dict[str, list[str]] = {}
    for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):  # the most frequent way first
        alike.setdefault(plain(name), []).append(name)
    groups = [[way] for ways in alike.values() if len(given & set(ways)) > 1 for way in ways]
    groups += [ways for ways in alike.values() if len(given & set(ways)) <= 1]
    return sorted(ways[0] for ways in groups), tuple(tuple(ways) for ways in groups if len(ways) > 1)


def _numbers(column: _Column, split: str, names: list[str] | None, given: Iterable[str]) -> np.ndarray:
    """Return a split's labels as numbers of `names`, or as they are where there are none."""
    numbers = column.numbers
    if names is not None and (numbers is None or column.names not in (None, names)):
        return _looked_up(column.as_texts(), split, names)
    if names is not None and column.texts is not None and set(column.texts) <= set(names):  # numbers that are names
        return _looked_up(column.texts, split, names)
    assert numbers is not None
    said = {whole(text) for text in given} if names is None else set()
    negative = [n for n in np.unique(numbers).tolist() if n < 0 and n not in said]
    if negative:
        count = int((numbers == negative[0]).sum())
        raise DataError(
            f"split {split!r}: label {negative[0]} is negative ({count:,} of {len(numbers):,} rows): this split's "
            "labels are withheld. Use another split, or say under data.labels which class "
            f"{negative[0]} is."
        )
    if names is not None and numbers.max() >= len(names):
        count = int((numbers >= len(names)).sum())
        raise DataError(
            f"split {split!r}: label {numbers.max()} has no name; there are {len(names)}: {show(names)}. "
            f"{count:,} {'row' if count == 1 else 'rows'} of the split have such a label: remove them, or name it."
        )
    return numbers


def _looked_up(texts: Sequence[str], split: str, names: Sequence[str]) -> np.ndarray:
    table = Names(names)
    places = {text: table.find(text) for text in set(texts)}
    unknown = sorted(text for text, place in places.items() if place is None)
    if unknown:
        rows = sum(text in unknown for text in texts)
        raise DataError(
            f"split {split!r}: labels {show(unknown)} ({rows:,} {'row' if rows == 1 else 'rows'}) do not occur among "
            f"the labels {show(names)}. Remove these rows, or write the labels as they are called there."
        )
    return np.asarray([places[text] for text in texts], dtype=np.int64)
