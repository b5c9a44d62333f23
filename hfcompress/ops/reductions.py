"""What is kept of a model's logits, batch by batch: numpy only, so that a process of any engine can do it.

Adding a way is one function and one entry in `REDUCTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Array = np.ndarray
Reduction = Callable[[Array, Mapping[str, Array]], Array]

IGNORED = -100  # a label that no loss or metric counts
LOSS, TOKEN = 0, 1  # columns of what is kept of each token


def keep_logits(logits: Array, batch: Mapping[str, Array]) -> Array:
    """Return the logits (batch, …) as they are."""
    return logits


def next_token(logits: Array, batch: Mapping[str, Array]) -> Array:
    """Return (batch, length - 1, 2): the loss in nats on each next token, and the likeliest token.

    logits: (batch, length, vocabulary); batch["labels"]: (batch, length), shifted here as causal language models do.
    The loss is NaN where the label is -100, and nowhere else: infinite where the logits give none. float64, which holds
    every token id exactly.
    """
    return _per_token(logits[:, :-1], batch["labels"][:, 1:])


def masked_token(logits: Array, batch: Mapping[str, Array]) -> Array:
    """Return (batch, length, 2): the loss in nats on each masked token, and the likeliest token.

    As `next_token`, with labels where the tokens are: -100 at every token that was not masked.
    """
    return _per_token(logits, batch["labels"])


def _per_token(logits: Array, labels: Array) -> Array:
    found = np.empty((*labels.shape, 2))
    for row, wanted, kept in zip(logits, labels, found, strict=True):  # one text at a time bounds the memory
        scores = row.astype(np.float32, copy=False)
        peak = scores.max(axis=-1)
        chosen = np.take_along_axis(scores, np.maximum(wanted, 0)[:, None], axis=-1)[:, 0]
        with np.errstate(invalid="ignore"):
            total = np.exp(scores - peak[:, None]).sum(axis=-1, dtype=np.float64)
            loss = np.log(total) + peak - chosen
        kept[:, LOSS] = np.where(wanted == IGNORED, np.nan, np.where(np.isnan(loss), np.inf, loss))
        kept[:, TOKEN] = scores.argmax(axis=-1)
    return found


def unanswered(kept: Array, reduction: str) -> Array:
    """Return of what a reduction kept (N, …) which examples have no finite loss, (N,) bool.

    A logit of -inf is an answer, one that rules a class out; NaN and +inf are none, nor is ruling out every class.
    """
    found = ~np.isfinite(kept.max(axis=-1)) if reduction == "logits" else np.isinf(kept[..., LOSS])
    return found.reshape(len(kept), -1).any(axis=1)


REDUCTIONS: dict[str, Reduction] = {"logits": keep_logits, "next_token": next_token, "masked_token": masked_token}
