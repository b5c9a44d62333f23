"""A metric: how predictions are scored against labels, and which way is better. Arrays only, no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Score = Callable[[Any, Any], float]
ROUNDING = 1e-9


class Metric:
    """A number for a whole set of predictions (N, …) and labels (N, …); calling it computes that number."""

    def __init__(self, score: Score, *, higher_is_better: bool = True) -> None:
        self.score = score
        self.higher_is_better = higher_is_better

    def __call__(self, predictions: Any, labels: Any) -> float:
        return float(self.score(predictions, labels))

    def trivial(self, guesses: Iterable[Any], labels: Any) -> float | None:
        """Return the best that one of `guesses` gets, predictions that look at no example; None: it has no number."""
        scores = [score for guess in guesses if math.isfinite(score := self(guess, labels))]
        return (max if self.higher_is_better else min)(scores, default=None)


def is_better(value: float, bound: float, *, higher: bool) -> bool:
    """Say whether a value is truly better than another, and not just as good; `higher`: more is better."""
    return value > bound + ROUNDING if higher else value < bound - ROUNDING


def scale_of(values: Iterable[float], *, higher: bool = True) -> float:
    """Return 100 where all values of a metric are shares, in [-1, 1], and `higher` is better, otherwise 1."""
    return 100.0 if higher and all(abs(value) <= 1 for value in values) else 1.0


def written(value: float, *others: float, higher: bool) -> str:
    """Return a metric as it stands in a sentence, in the unit of the card: ``90.00%`` of a share, else ``12.34``.

    `others` are values of the same metric beside it, which have the same unit.
    """
    scale = scale_of((value, *others), higher=higher)
    return signed_text(f"{value * scale:.2f}") + ("%" if scale == 100 else "")


def signed_text(text: str) -> str:
    """Return a formatted number with a true minus sign, and zero without one."""
    return text.replace("-", "−") if float(text) else text.lstrip("+-")


@dataclass(frozen=True)
class Parts:
    """What each example adds to a weighted mean: `totals` and `weights`, both (N,)."""

    totals: Any
    weights: Any


class MeanMetric(Metric):
    """A metric that is a function of Σ totals / Σ weights over examples, so that resampling it takes two sums.

    `parts` gives what each example adds; `finish` maps the mean, or an array of means, to the metric.
    """

    def __init__(
        self,
        parts: Callable[[Any, Any], Parts],
        finish: Callable[[Any], Any] = lambda mean: mean,
        *,
        higher_is_better: bool = True,
    ) -> None:
        self.parts = parts
        self.finish = finish
        self.higher_is_better = higher_is_better

    def score(self, predictions: Any, labels: Any) -> float:
        """Return the metric of the whole set."""
        found = self.parts(predictions, labels)
        return float(self.finish(found.totals.sum() / found.weights.sum()))
