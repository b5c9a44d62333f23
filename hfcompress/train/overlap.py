"""Examples that are measured on and also trained on: counted, and too many refused."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from ..core.errors import DataError
from ..recipe.data import Data
from ..recipe.data_report import DataReport, Overlap, where
from .data import Splits
from .example_keys import NO_EXAMPLE
from .repeats import repeats
from .rows import HOW
from .tasks.base import Task

MOST_LEAKED = 0.01  # of the evaluation split: more of it that is trained on moves a metric by more than noise
_SHOWN = 80  # characters of a text


def _advice(splits: Splits) -> str:
    if "(held-out" in splits.evaluate_split:  # a part of the training split, drawn at random
        return (
            "What is measured on is drawn from the training split, which holds these more than once: remove the copies"
        )
    return "Take them out of what is trained on"


def data_report(
    data: Data, task: Task, splits: Splits, encoded: Mapping[str, Dataset], processor: object
) -> DataReport:
    """Return what is to be known of the data; DataError where too much of what is measured on is trained on.

    encoded: `train`, what is trained on with the inputs without labels at its end, and `evaluate`.
    """
    raw = {"train": splits.mixed(), "evaluate": splits.evaluate}
    cut = {name: task.cut(dataset, encoded[name], processor, data) for name, dataset in raw.items()}
    (mixed, evaluate), what = task.keys([(raw[name], encoded[name]) for name in ("train", "evaluate")])
    found, seen = _overlap(task, splits, raw["evaluate"], mixed, evaluate, what)
    if found.share > MOST_LEAKED and not data.allow_leakage:
        raise DataError(
            f"data: {where(found)}{_example(splits, seen)} (compared: {found.what}; {HOW}). A metric on them is too "
            f"good. {_advice(splits)}, or set data.allow_leakage: true to measure all the same."
        )
    labelled = {"train": (mixed[: len(splits.train)], splits.train), "evaluate": (evaluate, splits.evaluate)}
    repeated = {} if task.joins(data) else {n: repeats(*one, splits.rows_of(n)) for n, one in labelled.items()}
    return DataReport(
        dropped=dict(splits.dropped),
        cut={name: one for name, one in cut.items() if one is not None},
        overlap=found,
        repeats={name: one for name, one in repeated.items() if one is not None},
    )


def _overlap(
    task: Task, splits: Splits, examples: Dataset, mixed: np.ndarray, evaluate: np.ndarray, what: str
) -> tuple[Overlap, np.ndarray]:
    """Return the overlap and which evaluation examples it consists of, (rows,) of bool.

    mixed, evaluate: the keys, (rows,), of what is trained on and of `examples`, which are measured on.
    """
    labelled, unlabelled = np.split(mixed, [len(splits.train)])
    counted = evaluate != NO_EXAMPLE
    trained = np.isin(evaluate, labelled) & counted
    further = np.isin(evaluate, unlabelled) & counted & ~trained
    weights = _letters(examples) if task.counted == "tokens" else np.ones(len(evaluate))
    seen = trained | further
    overlap = Overlap(
        what=what,
        of=int(counted.sum()),
        trained=int(trained.sum()),
        unlabelled=int(further.sum()),
        repeated=int(counted.sum() - len(np.unique(evaluate[counted]))),
        share=float(weights[seen].sum() / max(weights.sum(), 1)),
    )
    return overlap, seen


def _letters(dataset: Dataset) -> np.ndarray:
    """Return the bytes of each text: what a metric over tokens weighs it by, (rows,)."""
    return np.asarray(pc.binary_length(dataset.select_columns(["text"]).with_format("arrow")[:]["text"]), np.float64)


def _example(splits: Splits, seen: np.ndarray) -> str:
    """Return the first of these examples, in words: its row, and its text if it has one."""
    row = int(seen.argmax())
    called = f", such as {splits.called('evaluate', row)}"
    if "text" not in splits.evaluate.column_names:
        return called
    text = " ".join(splits.evaluate[row]["text"].split())
    return f"{called} ({text[:_SHOWN] + ('…' if len(text) > _SHOWN else '')!r})"
