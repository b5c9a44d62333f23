"""Comparing two models on the same examples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Score = Callable[[Array, Array], float]

_CHUNK = 4_000_000  # resampled values held at once


def accuracy(predictions: Array, labels: Array) -> float:
    """Return the share of predictions (N,) that equal their labels (N,)."""
    return float(np.mean(predictions == labels))


def paired_bootstrap(
    score: Score, a: Array, b: Array, labels: Array, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Return `score` of b minus that of a, with the percentile interval over resampled examples (low, high).

    `a`, `b`, `labels`: (N, …), one row an example. Both models are scored on the same resample, so that what is hard
    for both cancels. `score` takes predictions and labels; when it is `accuracy` all resamples are one matrix product.
    """
    value = score(b, labels) - score(a, labels)
    generator = np.random.default_rng(seed)
    if score is accuracy:
        gain = (b == labels).astype(np.float64) - (a == labels)
        values = _mean_resamples(gain, resamples, generator)
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


def _mean_resamples(values: Array, resamples: int, generator: np.random.Generator) -> Array:
    """Return the means of `resamples` draws of len(values) with replacement."""
    n = len(values)
    step = max(1, _CHUNK // n)
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    return np.concatenate([values[generator.integers(n, size=(size, n))].mean(axis=1) for size in sizes])


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
