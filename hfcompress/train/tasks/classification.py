"""What text and image classification share: one label per example, argmax, and scikit-learn's metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Value

from ...core.errors import DataError
from ...core.metric import MeanMetric, Metric, Parts
from .base import Task, missing_values
from .text import is_text

_SHOWN = 8


def _sk() -> Any:
    from sklearn import metrics  # half a second, where one of them is measured

    return metrics


def _hits(predictions: Any, labels: Any) -> Parts:
    return Parts(np.asarray(predictions) == np.asarray(labels), np.ones(len(labels)))


def _f1(predictions: Any, labels: Any) -> float:
    """F1 of class 1 with two classes, and the macro average with more."""
    binary = max(np.max(labels), np.max(predictions)) <= 1
    return float(_sk().f1_score(labels, predictions, average="binary" if binary else "macro", zero_division=0))


def _macro_f1(predictions: Any, labels: Any) -> float:
    return float(_sk().f1_score(labels, predictions, average="macro", zero_division=0))


def _matthews(predictions: Any, labels: Any) -> float:
    return float(_sk().matthews_corrcoef(labels, predictions))


class Classification(Task):
    """One label per example, in the column `label`."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": MeanMetric(_hits),
        "f1": Metric(_f1),
        "macro-f1": Metric(_macro_f1),
        "matthews": Metric(_matthews),
    }
    prediction = "label"

    def head_config(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return num_labels, id2label and label2id."""
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: index for index, name in enumerate(labels)},
        }

    def classes(self, config: Any) -> Sequence[str]:
        """Return the labels of the model's head, in order."""
        return [str(config.id2label[index]) for index in sorted(config.id2label)]

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Return the class with the highest logit: (examples, classes) -> (examples,)."""
        return logits.argmax(-1)

    def read_labels(
        self, splits: Mapping[str, Dataset], names: list[str] | None
    ) -> tuple[dict[str, Dataset], list[str] | None]:
        """Turn `label` into integers from 0; names come from its type, `names`, or its own text, in this order."""
        for split, dataset in splits.items():
            missing_values(dataset, "label", split)
        first = next(iter(splits.values()))
        if isinstance(first.features["label"], ClassLabel):
            names = list(first.features["label"].names)
        elif names is None and is_text(first.features["label"]):
            names = sorted(set(first["label"][:]))
        return {split: _to_integers(dataset, split, names) for split, dataset in splits.items()}, names

    def check_labels(self, config: Any, labels: Sequence[str] | None, count: int) -> None:
        """Raise DataError when the data has labels the model's head lacks, other names, or another order."""
        model = list(self.classes(config))
        advice = "Use a model with these labels, or add 'finetune' to train a new head."
        if count != len(model) if labels else count > len(model):
            raise DataError(
                f"the data has {count} labels ({_show(labels)}), the model {len(model)} ({_show(model)}). {advice}"
            )
        if labels is None or _unnamed(model) or _unnamed(labels):
            return
        here, there = [str(n).casefold() for n in labels], [n.casefold() for n in model]
        wrong = [i for i in range(count) if here[i] != there[i]]
        if wrong:
            reason = "in another order" if sorted(here) == sorted(there) else "with other names"
            pairs = ", ".join(f"{i}: {labels[i]!r} / {model[i]!r}" for i in wrong[:_SHOWN])
            raise DataError(f"data and model have the same number of labels {reason} (data / model): {pairs}. {advice}")


def _show(labels: Sequence[str] | None) -> str:
    if labels is None:
        return "unnamed"
    return ", ".join(map(repr, labels[:_SHOWN])) + (", …" if len(labels) > _SHOWN else "")


def _unnamed(labels: Sequence[str]) -> bool:
    """Say whether names say nothing: 'LABEL_0' of transformers, or the numbers themselves."""
    return all(str(name).casefold() in (f"label_{i}", str(i)) for i, name in enumerate(labels))


def _is_whole(feature: Any) -> bool:
    kind = getattr(feature, "pa_type", None)
    return kind is not None and (pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _to_integers(dataset: Dataset, split: str, names: list[str] | None) -> Dataset:
    feature, values = dataset.features["label"], dataset["label"][:]
    if is_text(feature):
        values = _lookup(values, split, names)
    elif not _is_whole(feature):
        raise DataError(f"split {split!r}: column 'label' holds {feature}; labels must be whole numbers or text.")
    labels = np.asarray(values, dtype=np.int64)
    if labels.min() < 0:
        raise DataError(
            f"split {split!r}: label {labels.min()} is negative: this split's labels are withheld. Use another split."
        )
    if names is not None and labels.max() >= len(names):
        raise DataError(f"split {split!r}: label {labels.max()} has no name; there are {len(names)}: {_show(names)}.")
    feature = ClassLabel(names=names) if names else Value("int64")
    return dataset.remove_columns("label").add_column("label", labels, feature=feature)


def _lookup(values: Sequence[str], split: str, names: list[str] | None) -> list[int]:
    index = {name: i for i, name in enumerate(names or ())}
    unknown = sorted(set(values) - set(index))
    if unknown:
        raise DataError(f"split {split!r}: labels {_show(unknown)} do not occur among the labels {_show(list(index))}.")
    return [index[value] for value in values]
