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
    The loss is NaN where the label is -100. float64, which holds every token id exactly.
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
        total = np.exp(scores - peak[:, None]).sum(axis=-1, dtype=np.float64)
        chosen = np.take_along_axis(scores, np.maximum(wanted, 0)[:, None], axis=-1)[:, 0]
        kept[:, LOSS] = np.where(wanted == IGNORED, np.nan, np.log(total) + peak - chosen)
        kept[:, TOKEN] = scores.argmax(axis=-1)
    return found


REDUCTIONS: dict[str, Reduction] = {"logits": keep_logits, "next_token": next_token, "masked_token": masked_token}
