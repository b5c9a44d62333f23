"""Text generation: a causal language model, measured by its perplexity on running text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset

from ...core.errors import RecipeError
from ...core.metric import MeanMetric, Metric, Parts
from ...recipe.data import Data
from .base import Collator, register_task
from .language_modelling import LanguageModelling, block_length, blocks, hits, tokenized


def _hits(predictions: Any, labels: Any) -> Parts:
    return hits(predictions, labels[:, 1:])


@register_task
class TextGeneration(LanguageModelling):
    """Causal language modelling: texts are tokenized, concatenated, and cut into blocks of equal length.

    Predictions are (blocks, length - 1, 2): each next token's loss in nats, and the token the model finds likeliest.
    """

    name = "text-generation"
    auto_class = "AutoModelForCausalLM"
    metrics: ClassVar[Mapping[str, Metric]] = {**LanguageModelling.metrics, "accuracy": MeanMetric(_hits)}
    reduction = "next_token"
    prediction = "next token"

    def encode(self, dataset: Dataset, processor: Any, data: Data) -> Dataset:
        """Return full blocks of `data.max_length` tokens; the tokenizer adds its own special tokens to each text.

        Raises RecipeError for blocks longer than the model, DataError when there is not a single one.
        """
        if not data.join:
            raise RecipeError("data.join: text-generation always joins its texts; leave it out.")
        length = block_length(processor, data)
        ids = tokenized(dataset, lambda texts: {"input_ids": processor(texts, verbose=False)["input_ids"]})
        return blocks(ids, length)

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """Return the token after each: the first of a block is predicted from nothing, so it does not count."""
        return labels[:, 1:]

    def collator(self, processor: Any, data: Data | None = None, seed: int = 0) -> Collator:
        """Return a collator that stacks blocks; labels are the ids themselves, which the model shifts."""
        return _collate


def _collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(np.stack([example["input_ids"] for example in examples])).long()
    return {"input_ids": ids, "labels": ids.clone()}
