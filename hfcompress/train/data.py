"""From the recipe's `data` to two clean splits with the columns and labels a task wants."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, ReadInstruction, Value, concatenate_datasets
from torch.utils.data import DataLoader

from ..core.errors import DataError, RecipeError, nearest
from ..ops.reductions import IGNORED
from ..recipe.data import Columns, Data, Origin
from .missing import MissingValues
from .rows import Rows, with_places, without_places
from .sources import Source, open_source
from .tasks.base import Task
from .tasks.label_map import LabelMap, match
from .tasks.labels import DataLabels, with_labels

EVALUATION_NAMES = ("validation", "valid", "val", "dev", "evaluate", "eval", "test")
_MOST_WORKERS = 8
_WORDS = 3  # a column's name has no more


@dataclass(frozen=True)
class Splits:
    """Two splits that share no example, with the task's own column names."""

    train: Dataset
    evaluate: Dataset
    label_names: list[str] | None  # None: neither the data nor a labels.json beside it names them
    label_count: int
    evaluate_split: str  # the split measured on, as a card cites it
    unlabelled: Dataset | None = None  # inputs for a teacher to label
    labels: DataLabels | None = None  # as the data has them; None: it has none
    label_map: LabelMap | None = None  # which class of the model each is, once that is known
    dropped: Mapping[str, int] = field(default_factory=dict)  # rows left out for a missing value, by split
    rows: Mapping[str, Rows] = field(default_factory=dict)  # where they come from: train, evaluate and unlabelled

    def numbered_as(self, found: LabelMap | None) -> Splits:
        """Return the splits with the ids of a model's classes as labels; themselves where they have none."""
        if found is None:
            return self
        train, evaluate = self.train, self.evaluate
        if not found.is_identity:
            train, evaluate = (
                with_labels(split, found.apply(np.asarray(split["label"][:]))) for split in (train, evaluate)
            )
        names, count = list(found.classes), len(found.classes)
        return replace(self, train=train, evaluate=evaluate, label_names=names, label_count=count, label_map=found)

    def for_classes(self, classes: Sequence[str], data: Data) -> Splits:
        """Return the splits with the ids of these classes of a trained model; DataError where they are not known."""
        return self if self.labels is None else self.numbered_as(match(self.labels, classes, data.labels))

    def called(self, split: str, row: int) -> str:
        """Return what a row of `evaluate`, or of `train` followed by the unlabelled inputs, is called in a message."""
        if split == "train" and row >= len(self.train):
            split, row = "unlabelled", row - len(self.train)
        return self.rows_of(split).called(row)

    def rows_of(self, split: str) -> Rows:
        """Return where the rows of `train`, `evaluate` or `unlabelled` come from; numbers alone where none knows."""
        return self.rows.get(split, Rows())

    def mixed(self) -> Dataset:
        """Return the training split and then the unlabelled inputs, whose label is one that no loss counts."""
        if self.unlabelled is None:
            return self.train
        labelled = self.train.cast_column("label", Value("int64"))
        labels = np.full(len(self.unlabelled), IGNORED, dtype=np.int64)
        other = self.unlabelled.add_column("label", labels, feature=Value("int64"))
        return concatenate_datasets([labelled, other.cast(labelled.features)])


def load_data(data: Data, task: Task, seed: int) -> Splits:
    """Read, check and cut the data; raises DataError that names the split, column, row or label at fault."""
    source = open_source(data)
    name = _measured_on(data, source)
    ranges = {"train": _ranges(source, data.splits.train, "data.splits.train")}
    if name is not None:
        ranges["evaluate"] = _ranges(source, name, "data.splits.evaluate")
        if not data.allow_leakage:
            _refuse_overlap(ranges["train"], ranges["evaluate"], "data.splits", data.splits.train, name)
    missing = MissingValues(data.drop_missing, blank_lines=task.joins(data))
    unlabelled, rows = _unlabelled(data, task, seed, ranges, missing)
    found = {
        key: _columns(_rows(source, parts, f"data.splits.{key}"), task, data.columns, key, "data", missing, parts)
        for key, parts in ranges.items()
    }
    missing.refuse()
    found, labels = task.read_labels(found, source.label_names, data.labels or ())
    if labels is None and data.labels is not None:
        raise RecipeError(f"data.labels: the data of {task.name} has no labels; leave it out.")
    train = found["train"]
    if name is None:
        train, evaluate = _hold_out(train, data.validation_fraction, seed)
        name = f"{data.splits.train} (held-out {data.validation_fraction:.0%})"
    else:
        evaluate = found["evaluate"]
    train, evaluate = _subset(train, data.max_train, seed), _subset(evaluate, data.max_evaluate, seed)
    train, rows["train"] = without_places(train, ranges["train"])
    evaluate, rows["evaluate"] = without_places(evaluate, ranges.get("evaluate", ranges["train"]))
    names = labels.names if labels else None
    count = len(names) if names else 1 + max(labels.present) if labels else 0
    return Splits(train, evaluate, names, count, name, unlabelled, labels, dropped=missing.dropped, rows=rows)


def _measured_on(data: Data, source: Source) -> str | None:
    """Return the split to measure on; None stands for a part of the training split, to be held out."""
    if data.splits.held_out:
        return None
    return data.splits.evaluate or next((n for n in EVALUATION_NAMES if n in source.splits), None)


def _unlabelled(
    data: Data, task: Task, seed: int, ranges: Mapping[str, list[tuple[str, range]]], missing: MissingValues
) -> tuple[Dataset | None, dict[str, Rows]]:
    """Return the inputs of `data.unlabelled`, if any, none of which may be among those that are measured on.

    With them comes where they stand, under `unlabelled`.
    """
    extra, where = data.unlabelled, "data.unlabelled"
    if extra is None:
        return None, {}
    if "label" not in task.columns:
        raise RecipeError(f"{where}: the data of {task.name} needs no labels; add these examples to 'data' itself.")
    pair = [
        role
        for role in task.optional
        if (getattr(extra.columns, role) is None) != (getattr(data.columns, role) is None)
    ]
    if pair:
        raise DataError(
            f"{where}.columns.{pair[0]}: give it for both, labelled and unlabelled examples, or for neither."
        )
    source = open_source(extra, where)
    parts = _ranges(source, extra.split, f"{where}.split")
    if _place(extra) == _place(data) and not data.allow_leakage:
        measured = "evaluate" if "evaluate" in ranges else "train"  # of which a part will be held out
        _refuse_overlap(parts, ranges[measured], where, extra.split, measured)
    examples = _rows(source, parts, f"{where}.split")
    found = _columns(examples, task, extra.columns, "unlabelled", where, missing, parts, labelled=False)
    found, rows = without_places(_subset(found, extra.max_examples, seed), parts)
    return found, {"unlabelled": rows}


def _place(data: Origin) -> tuple[str | None, ...]:
    return data.dataset, data.config, str(Path(data.path).expanduser().resolve()) if data.path else None


def loader(dataset: Dataset, batch_size: int, collate: Callable[[list[Any]], Any]) -> DataLoader[Any]:
    """Return a loader of batches in order; examples that are decoded as they are read are so in other processes."""
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collate, num_workers=workers_for(dataset))


def workers_for(dataset: Any) -> int:
    """Return how many processes should make examples ready while the batch before is computed with: 0 for stored ones.

    One core is left to what computes.
    """
    if not isinstance(dataset, Dataset) or dataset.format["type"] != "custom":
        return 0
    return max(1, min(_MOST_WORKERS, (os.cpu_count() or 1) - 1))


def calibration_batches(
    dataset: Dataset, collator: Callable[[list[Any]], Any], count: int, batch_size: int, seed: int
) -> Iterator[Any]:
    """Yield batches over at most `count` examples drawn with the seed, texts of like length together: less padding.

    The batches come in no order of length, so that the first few stand for all.
    """
    random = np.random.default_rng(seed)
    drawn = dataset.select(random.permutation(len(dataset))[:count])
    if batch_size > 1 and "input_ids" in drawn.column_names:
        order = np.argsort([len(ids) for ids in drawn["input_ids"]], kind="stable")
        full = len(order) // batch_size * batch_size
        mixed = random.permutation(order[:full].reshape(-1, batch_size)).flatten()
        drawn = drawn.select(np.concatenate([mixed, order[full:]]))
    yield from loader(drawn, batch_size, collator)


def _ranges(source: Source, spec: str, key: str) -> list[tuple[str, range]]:
    """Return the rows, by split, that a split name, slice or sum of them means."""
    sizes = {name: len(split) for name, split in source.splits.items()}
    for part in spec.split("+"):
        if (base := part.split("[")[0].strip()) not in sizes:
            raise DataError(f"{key}: {source.name} has no split {base!r}.{nearest(base, sizes)}")
    try:
        parts = ReadInstruction.from_spec(spec).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise DataError(f"{key}: {spec!r} is not a slice such as 'train[:80%]': {error}") from error
    return [(p.splitname, range(*slice(p.from_, p.to).indices(sizes[p.splitname]))) for p in parts]


def _refuse_overlap(
    train: list[tuple[str, range]], evaluate: list[tuple[str, range]], where: str, train_spec: str, evaluate_spec: str
) -> None:
    for split, rows in train:
        for other, others in evaluate:
            shared = min(rows.stop, others.stop) - max(rows.start, others.start)
            if split == other and shared > 0:
                raise DataError(
                    f"{where}: {train_spec!r} and {evaluate_spec!r} share {shared} examples of {split!r}; "
                    "what is measured on must not be trained on. To do so all the same, set data.allow_leakage: true."
                )


def _rows(source: Source, ranges: list[tuple[str, range]], key: str) -> Dataset:
    found = [source.splits[name].select(rows) for name, rows in ranges]
    try:
        dataset = found[0] if len(found) == 1 else concatenate_datasets(found)
    except ValueError as error:
        raise DataError(f"{key}: these splits do not have the same columns of the same types: {error}") from error
    if not len(dataset):
        raise DataError(f"{key}: this split of {source.name} is empty.")
    return dataset


def _columns(
    dataset: Dataset,
    task: Task,
    columns: Columns,
    split: str,
    where: str,
    missing: MissingValues,
    parts: list[tuple[str, range]],
    *,
    labelled: bool = True,
) -> Dataset:
    """Keep the columns the task needs, under the task's names, with inputs checked, and no value missing as far as may.

    `parts` are what the rows come from; beside the columns goes where each stands in these.
    """
    roles = {role: usual for role, usual in task.columns.items() if labelled or role != "label"}
    found = {role: _column(dataset, role, usual, columns, where) for role, usual in roles.items()}
    found |= {r: _column(dataset, r, (), columns, where) for r in task.optional if getattr(columns, r) is not None}
    dataset = dataset.select_columns(list(found.values()))
    dataset = dataset.rename_columns({old: new for new, old in found.items() if old != new})
    dataset = missing.clean(with_places(dataset), split, Rows(parts))
    if missing.found:  # refused once every split was looked at
        return dataset
    dataset = task.check_inputs(dataset, split)
    return missing.without(dataset, task.unreadable(dataset), split) if missing.drop else dataset


def _column(dataset: Dataset, role: str, usual: Sequence[str], columns: Columns, where: str) -> str:
    named = getattr(columns, role)
    names = dataset.column_names
    if named is not None and named not in names:
        raise DataError(f"{where}.columns.{role}: the data has no column {named!r}.{nearest(named, names)}")
    column = named or next((name for name in usual if name in names), None)
    if column is None:
        raise DataError(
            f"{where}.columns.{role}: say which column holds the {role}, as in `columns: {{{role}: {names[0]}}}`. "
            f"Known: {', '.join(names)}."
            + " If that is an example, the file lacks a first line with the names of its columns."
            * _are_values(names)
        )
    return column


def _are_values(names: Sequence[str]) -> bool:
    """Say whether the names of columns look like an example: a number among them, or a sentence."""
    return any(name.lstrip("-").replace(".", "", 1).isdecimal() or len(name.split()) > _WORDS for name in names)


def _hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    size = round(len(dataset) * fraction)
    if not 0 < size < len(dataset):
        raise DataError(f"data.validation_fraction: {fraction} of {len(dataset)} examples leaves a split empty.")
    held, rest = _draw(dataset, size, seed)
    return dataset.select(rest), dataset.select(held)


def _subset(dataset: Dataset, size: int | None, seed: int) -> Dataset:
    if size is None or size >= len(dataset):
        return dataset
    return dataset.select(_draw(dataset, size, seed)[0])


def _draw(dataset: Dataset, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `size` row numbers and return them and the others, with the labels in proportion where they can be."""
    labels = (
        np.unique(np.asarray(dataset["label"][:]), return_inverse=True)[1] if "label" in dataset.column_names else None
    )
    if labels is not None:
        counts = np.bincount(labels)
        if counts.min() < 2 or min(size, len(dataset) - size) < len(counts):
            labels = None
    from sklearn.model_selection import train_test_split  # half a second, where a split is drawn

    drawn, rest = train_test_split(np.arange(len(dataset)), train_size=size, random_state=seed, stratify=labels)
    return np.sort(drawn), np.sort(rest)
