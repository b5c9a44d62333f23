"""What text and image classification share: one label per example, argmax, and scikit-learn's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from ...core.metric import MeanMetric, Metric, Parts
from .base import Task
from .labels import DataLabels, read_labels

_GUESSES = 10  # classes that are tried as the one answer to everything: the best one is among the most frequent


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

    def guesses(self, labels: np.ndarray, config: Any) -> Iterator[np.ndarray]:
        """Return, one after the other, always the same class: the most frequent ones of the labels."""
        classes, counts = np.unique(labels, return_counts=True)
        for label in classes[np.argsort(-counts, kind="stable")][:_GUESSES]:
            yield np.full_like(labels, label)

    def read_labels(
        self, splits: Mapping[str, Dataset], names: list[str] | None, given: Iterable[str] = ()
    ) -> tuple[dict[str, Dataset], DataLabels | None]:
        """Turn `label` into integers; names come from its type, `names`, or its own text, in this order."""
        return read_labels(splits, names, given)
