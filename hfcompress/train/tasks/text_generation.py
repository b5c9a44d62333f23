"""Text generation: a causal language model, measured by its perplexity on running text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, Features, List, Value

from ...core.errors import DataError, RecipeError
from ...core.metric import MeanMetric, Metric, Parts
from ...ops.reductions import LOSS, TOKEN
from ...recipe.schema import Data
from .base import Collator, register_task
from .text import TextInputs, token_limit

_DEFAULT_LENGTH = 1024  # as in transformers' run_clm


def _losses(predictions: Any, labels: Any) -> Parts:
    losses = predictions[..., LOSS]
    return Parts(np.nansum(losses, axis=-1), np.isfinite(losses).sum(axis=-1).astype(np.float64))


def _hits(predictions: Any, labels: Any) -> Parts:
    counted = ~np.isnan(predictions[..., LOSS])
    hits = (predictions[..., TOKEN] == labels[:, 1:]) & counted
    return Parts(hits.sum(axis=-1), counted.sum(axis=-1).astype(np.float64))


@register_task
class TextGeneration(TextInputs):
    """Causal language modelling: texts are tokenized, concatenated, and cut into blocks of equal length.

    Predictions are (blocks, length - 1, 2): each next token's loss in nats, and the token the model finds likeliest.
    """

    name = "text-generation"
    auto_class = "AutoModelForCausalLM"
    columns: ClassVar = {"text": ("text", "sentence")}
    metrics: ClassVar[Mapping[str, Metric]] = {
        "perplexity": MeanMetric(_losses, np.exp, higher_is_better=False),
        "accuracy": MeanMetric(_hits),
    }
    reduction = "next_token"
    counted = "tokens"
    prediction = "next token"

    def load_processor(self, source: str | None, config: Any, data: Data, revision: str | None = None) -> Any:
        """Load the tokenizer and let it know the most tokens the model has positions for."""
        tokenizer = super().load_processor(source, config, data, revision)
        positions = getattr(config, "max_position_embeddings", None)
        if positions:
            tokenizer.model_max_length = min(positions, tokenizer.model_max_length)
        return tokenizer

    def head_config(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return nothing: the head gives one logit per token of the vocabulary."""
        return {}

    def read_labels(
        self, splits: Mapping[str, Dataset], names: list[str] | None
    ) -> tuple[dict[str, Dataset], list[str] | None]:
        """Return the splits as they are: the text is its own label."""
        return dict(splits), None

    def check_labels(self, config: Any, labels: Sequence[str] | None, count: int) -> None:
        """There are no labels to check."""

    def encode(self, dataset: Dataset, processor: Any, data: Data) -> Dataset:
        """Return full blocks of `data.max_length` tokens; the tokenizer adds its own special tokens to each text.

        Text after the last full block is left out, so that every token is predicted from a context of the same kind.
        Raises RecipeError for blocks longer than the model, DataError when there is not a single one.
        """
        length = _block_length(processor, data)
        texts = dataset.select_columns("text")
        options: dict[str, Any] = {"batched": True, "remove_columns": ["text"], "desc": "tokenizing"}
        tokens = texts.map(lambda batch: {"ids": processor(batch["text"], verbose=False)["input_ids"]}, **options)
        stream = tokens.with_format("arrow")[:]["ids"].combine_chunks().flatten().to_numpy()
        count = len(stream) // length
        if not count:
            raise DataError(
                f"this split has {len(stream)} tokens, less than one block of {length}; set data.max_length"
            )
        blocks = stream[: count * length].reshape(count, length)
        features = Features(input_ids=List(Value("int64"), length=length))
        return Dataset.from_dict({"input_ids": blocks}, features=features).with_format("numpy")

    def collator(self, processor: Any) -> Collator:
        """Return a collator that stacks blocks; labels are the ids themselves, which the model shifts."""
        return _collate

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Return the losses and likeliest tokens as they are."""
        return logits

    def answers(self, predictions: np.ndarray) -> np.ndarray:
        """Return the likeliest token at every position that counts, (tokens,)."""
        return predictions[..., TOKEN][~np.isnan(predictions[..., LOSS])]


def _block_length(processor: Any, data: Data) -> int:
    limit = token_limit(processor)
    if data.max_length and limit and data.max_length > limit:
        raise RecipeError(f"data.max_length: the model takes {limit} tokens at most (got {data.max_length}).")
    return data.max_length or min(limit or _DEFAULT_LENGTH, _DEFAULT_LENGTH)


def _collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(np.stack([example["input_ids"] for example in examples]))
    return {"input_ids": ids, "labels": ids.clone()}
