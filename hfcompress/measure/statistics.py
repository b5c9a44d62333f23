"""Comparing two models on the same examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..core.metric import MeanMetric, Parts

Array = np.ndarray
Score = Callable[[Array, Array], float]

_CHUNK = 4_000_000  # resampled values held at once

accuracy = MeanMetric(lambda predictions, labels: Parts(predictions == labels, np.ones(len(labels))))
"""The share of predictions (N,) that equal their labels (N,)."""


def paired_bootstrap(
    score: Score, a: Array, b: Array, labels: Array, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Return `score` of b minus that of a, with the percentile interval over resampled examples (low, high).

    `a`, `b`, `labels`: (N, …), one row an example. Both models are scored on the same resample, so that what is hard
    for both cancels. `score` takes predictions and labels; of a MeanMetric only the examples' parts are resampled.
    """
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
    p, q = _log_softmax(p_logits), _log_softmax(q_logits)
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))


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


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
