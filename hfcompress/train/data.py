"""From the recipe's `data` to two clean splits with the columns and labels a task wants."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, ReadInstruction, Value, concatenate_datasets
from torch.utils.data import DataLoader

from ..core.errors import DataError, RecipeError, nearest
from ..ops.reductions import IGNORED
from ..recipe.data import Columns, Data, Origin
from .sources import Source, open_source
from .tasks.base import Task

EVALUATION_NAMES = ("validation", "valid", "val", "dev", "evaluate", "eval", "test")
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Splits:
    """Two splits that share no example, with the task's own column names."""

    train: Dataset
    evaluate: Dataset
    label_names: list[str] | None  # None: neither the data nor a labels.json beside it names them
    label_count: int
    evaluate_split: str  # the split measured on, as a card cites it
    unlabelled: Dataset | None = None  # inputs for a teacher to label

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
        _refuse_overlap(ranges["train"], ranges["evaluate"], "data.splits", data.splits.train, name)
    unlabelled = _unlabelled(data, task, seed, ranges)
    found = {
        key: _columns(_rows(source, rows, f"data.splits.{key}"), task, data.columns, key, "data")
        for key, rows in ranges.items()
    }
    found, names = task.read_labels(found, source.label_names)
    train = found["train"]
    if name is None:
        train, evaluate = _hold_out(train, data.validation_fraction, seed)
        name = f"{data.splits.train} (held-out {data.validation_fraction:.0%})"
    else:
        evaluate = found["evaluate"]
    train, evaluate = _subset(train, data.max_train, seed), _subset(evaluate, data.max_evaluate, seed)
    count = len(names) if names else 1 + max(_largest(train), _largest(evaluate))
    return Splits(train, evaluate, names, count, name, unlabelled)


def _measured_on(data: Data, source: Source) -> str | None:
    """Return the split to measure on; None stands for a part of the training split, to be held out."""
    if data.splits.held_out:
        return None
    return data.splits.evaluate or next((n for n in EVALUATION_NAMES if n in source.splits), None)


def _unlabelled(data: Data, task: Task, seed: int, ranges: Mapping[str, list[tuple[str, range]]]) -> Dataset | None:
    """Return the inputs of `data.unlabelled`, if any, none of which may be among those that are measured on."""
    extra, where = data.unlabelled, "data.unlabelled"
    if extra is None:
        return None
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
    rows = _ranges(source, extra.split, f"{where}.split")
    if _place(extra) == _place(data):
        measured = "evaluate" if "evaluate" in ranges else "train"  # of which a part will be held out
        _refuse_overlap(rows, ranges[measured], where, extra.split, measured)
    found = _columns(_rows(source, rows, f"{where}.split"), task, extra.columns, "unlabelled", where, labelled=False)
    return _subset(found, extra.max_examples, seed)


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
                    "what is measured on must not be trained on."
                )


def _rows(source: Source, ranges: list[tuple[str, range]], key: str) -> Dataset:
    found = [source.splits[name].select(rows) for name, rows in ranges]
    dataset = found[0] if len(found) == 1 else concatenate_datasets(found)
    if not len(dataset):
        raise DataError(f"{key}: this split of {source.name} is empty.")
    return dataset


def _columns(
    dataset: Dataset, task: Task, columns: Columns, split: str, where: str, *, labelled: bool = True
) -> Dataset:
    """Keep the columns the task needs, under the task's names, with inputs checked."""
    roles = {role: usual for role, usual in task.columns.items() if labelled or role != "label"}
    found = {role: _column(dataset, role, usual, columns, where) for role, usual in roles.items()}
    found |= {r: _column(dataset, r, (), columns, where) for r in task.optional if getattr(columns, r) is not None}
    dataset = dataset.select_columns(list(found.values()))
    return task.check_inputs(dataset.rename_columns({old: new for new, old in found.items() if old != new}), split)


def _column(dataset: Dataset, role: str, usual: Sequence[str], columns: Columns, where: str) -> str:
    named = getattr(columns, role)
    names = dataset.column_names
    if named is not None and named not in names:
        raise DataError(f"{where}.columns.{role}: the data has no column {named!r}.{nearest(named, names)}")
    column = named or next((name for name in usual if name in names), None)
    if column is None:
        raise DataError(f"{where}.columns.{role}: say which column holds the {role}. Known: {', '.join(names)}.")
    return column


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


def _largest(dataset: Dataset) -> int:
    return int(np.max(dataset["label"][:])) if "label" in dataset.column_names else -1
