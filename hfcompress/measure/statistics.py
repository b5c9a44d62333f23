"""Comparing two models on the same examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from ..core.errors import MeasureError
from ..core.metric import MeanMetric, Parts

Array = np.ndarray
Score = Callable[[Array, Array], float]

_CHUNK = 4_000_000  # resampled values held at once
BINS = 15  # of the calibration error, as in Guo et al. 2017

accuracy = MeanMetric(lambda predictions, labels: Parts(predictions == labels, np.ones(len(labels))))
"""The share of predictions (N,) that equal their labels (N,)."""


def paired_bootstrap(
    score: Score, a: Array, b: Array, labels: Array, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Return `score` of b minus that of a, with the percentile interval over resampled examples (low, high).

    `a`, `b`, `labels`: (N, …), one row an example. Both models are scored on the same resample, so that what is hard
    for both cancels. `score` takes predictions and labels; of a MeanMetric only the examples' parts are resampled.
    Raises MeasureError where there is no example.
    """
    if not len(labels):
        raise MeasureError("two models cannot be compared on no examples: the evaluation split is empty")
    value = score(b, labels) - score(a, labels)
    generator = np.random.default_rng(seed)
    if isinstance(score, MeanMetric):
        values = _mean_resamples(score, score.parts(a, labels), score.parts(b, labels), resamples, generator)
    else:
        picks = (generator.integers(len(labels), size=len(labels)) for _ in range(resamples))
        values = np.array([score(b[i], labels[i]) - score(a[i], labels[i]) for i in picks])
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(value), float(low), float(high)


def agreement(a: Array, b: Array) -> float:
    """Return the share of examples on which both predict the same; a, b: (N,)."""
    return float(np.mean(a == b))


def kl_divergence(p_logits: Array, q_logits: Array) -> float:
    """Return the mean over examples of KL(p ‖ q) in nats; logits: (N, C)."""
    p, q = (special.log_softmax(logits.astype(np.float64), axis=-1) for logits in (p_logits, q_logits))
    with np.errstate(invalid="ignore"):  # a class that p rules out, by a logit of -inf, adds nothing: p log p -> 0
        terms = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q))
    return float(np.mean(np.sum(terms, axis=-1)))


def mcnemar(a: Array, b: Array, labels: Array) -> tuple[int, int, float]:
    """Return how many examples only a gets right, how many only b does, and the exact two-sided p-value; all (N,).

    McNemar 1947: were both equally good, either would win such an example with probability one half.
    """
    only_a = int(np.sum((a == labels) & (b != labels)))
    only_b = int(np.sum((a != labels) & (b == labels)))
    return only_a, only_b, mcnemar_p(only_a, only_b)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Return the exact two-sided p-value of so many examples that only one of two models gets right."""
    discordant = only_a + only_b
    return float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0


def calibration_error(logits: Array, labels: Array, bins: int = BINS) -> float:
    """Return the expected calibration error of the likeliest class, in [0, 1]; logits: (N, C), labels: (N,).

    Guo et al. 2017, eq. 3: the gap between accuracy and mean confidence in each of `bins` equal bins of confidence,
    weighted by the bin's share of examples.
    """
    confidence = special.softmax(logits.astype(np.float64), axis=-1).max(axis=-1)
    gaps = confidence - (logits.argmax(axis=-1) == labels)
    sums = stats.binned_statistic(confidence, gaps, "sum", bins=bins, range=(0, 1)).statistic
    return float(np.abs(sums).sum() / len(labels))


def right_by_class(predictions: Array, labels: Array, classes: int) -> Array:
    """Return how many examples of each class are predicted right, (classes,); predictions, labels: (N,)."""
    return np.bincount(labels[predictions == labels], minlength=classes)


@dataclass(frozen=True)
class Spread:
    """Values of repeated runs: their mean, sample standard deviation and number; a single run has no deviation."""

    mean: float
    deviation: float | None
    runs: int


def spread(values: Sequence[float]) -> Spread:
    """Return how the results of runs that differ in their seed alone are scattered."""
    found = np.asarray(values, dtype=np.float64)
    return Spread(float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else None, len(found))


def _mean_resamples(metric: MeanMetric, a: Parts, b: Parts, resamples: int, generator: np.random.Generator) -> Array:
    """Return the metric's difference over `resamples` draws of the examples with replacement."""

    def differences() -> Iterator[Array]:
        for picks in _picks(len(a.totals), resamples, generator):
            means = [p.totals[picks].sum(axis=1) / p.weights[picks].sum(axis=1) for p in (b, a)]
            yield metric.finish(means[0]) - metric.finish(means[1])

    return np.concatenate(list(differences()))


def _picks(n: int, resamples: int, generator: np.random.Generator) -> Iterator[Array]:
    """Yield row numbers (draws, n) until there were `resamples` draws."""
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        yield generator.integers(n, size=(min(step, resamples - start), n))
