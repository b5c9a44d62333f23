"""What language models share: text that is its own label, blocks of tokens, and metrics over the tokens that count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, Features, List, Value

from ...core.errors import DataError, RecipeError
from ...core.metric import MeanMetric, Metric, Parts
from ...ops.reductions import IGNORED, LOSS, TOKEN
from ...recipe.data import Data
from .labels import DataLabels
from .text import TextInputs, token_limit

_DEFAULT_LENGTH = 1024  # as in transformers' run_clm


def losses(predictions: Any, labels: Any) -> Parts:
    """Return each example's loss in nats over the tokens that count."""
    found = predictions[..., LOSS]
    return Parts(np.nansum(found, axis=-1), (~np.isnan(found)).sum(axis=-1).astype(np.float64))


def hits(predictions: Any, labels: Any) -> Parts:
    """Return how many of each example's tokens that count are the likeliest ones; labels lie where predictions do."""
    counted = ~np.isnan(predictions[..., LOSS])
    right = (predictions[..., TOKEN] == labels) & counted
    return Parts(right.sum(axis=-1), counted.sum(axis=-1).astype(np.float64))


class LanguageModelling(TextInputs):
    """A task on text without labels; predictions are (examples, tokens, 2): a loss in nats and the likeliest token."""

    columns: ClassVar = {"text": ("text", "sentence")}
    metrics: ClassVar[Mapping[str, Metric]] = {
        "perplexity": MeanMetric(losses, np.exp, higher_is_better=False),
        "cross_entropy": MeanMetric(losses, higher_is_better=False),
        "accuracy": MeanMetric(hits),
    }
    counted = "tokens"

    def head_config(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return nothing: the head gives one logit per token of the vocabulary."""
        return {}

    def read_labels(
        self, splits: Mapping[str, Dataset], names: list[str] | None, given: Iterable[str] = ()
    ) -> tuple[dict[str, Dataset], DataLabels | None]:
        """Return the splits as they are: the text is its own label."""
        return dict(splits), None

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """Return the token to be predicted at each place, IGNORED where there is none: (examples, places)."""
        return labels

    def guesses(self, labels: np.ndarray, config: Any) -> Iterable[np.ndarray]:
        """Return the most frequent token everywhere, at the loss of one that takes all tokens for equally likely."""
        targets = self.targets(labels)
        counted = targets != IGNORED
        tokens, counts = np.unique(targets[counted], return_counts=True)
        if not len(tokens):
            return []
        guess = np.empty((*targets.shape, 2))
        guess[..., LOSS] = np.where(counted, np.log(config.get_text_config().vocab_size), np.nan)
        guess[..., TOKEN] = tokens[counts.argmax()]
        return [guess]

    def joins(self, data: Data) -> bool:
        """Say whether texts are joined and cut into blocks."""
        return data.join

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Return the losses and likeliest tokens as they are."""
        return logits

    def answers(self, predictions: np.ndarray) -> np.ndarray:
        """Return the likeliest token at every position that counts, (tokens,)."""
        return predictions[..., TOKEN][~np.isnan(predictions[..., LOSS])]


def tokenized(dataset: Dataset, tokenize: Callable[[list[str]], Mapping[str, list[Any]]]) -> Dataset:
    """Return what `tokenize` makes of the texts, one list per text and column."""
    options: dict[str, Any] = {"batched": True, "remove_columns": ["text"], "desc": "tokenizing"}
    return dataset.select_columns("text").map(lambda batch: dict(tokenize(batch["text"])), **options)


def blocks(tokens: Dataset, length: int) -> Dataset:
    """Return the columns of `tokens` joined over all texts and cut into rows of `length`.

    Text after the last full block is left out, so that every token is predicted from a context of the same kind.
    Raises DataError when there is not a single block.
    """
    table = tokens.with_format("arrow")[:]
    streams = {name: table[name].combine_chunks().flatten().to_numpy() for name in tokens.column_names}
    size = len(next(iter(streams.values())))
    if size < length:
        raise DataError(f"this split has {size} tokens, less than one block of {length}; set data.max_length")
    rows = {name: stream[: size // length * length].reshape(-1, length) for name, stream in streams.items()}
    features = Features({name: List(Value(str(r.dtype)), length=length) for name, r in rows.items()})
    return Dataset.from_dict(rows, features=features).with_format("numpy")


def block_length(processor: Any, data: Data) -> int:
    """Return how many tokens a block has; RecipeError when the model has no positions for as many."""
    limit = token_limit(processor)
    if data.max_length and limit and data.max_length > limit:
        raise RecipeError(f"data.max_length: the model takes {limit} tokens at most (got {data.max_length}).")
    return data.max_length or min(limit or _DEFAULT_LENGTH, _DEFAULT_LENGTH)
