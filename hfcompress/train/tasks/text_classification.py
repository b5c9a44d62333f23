"""Text classification: one label for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, ClassVar

from datasets import Dataset
from transformers import DataCollatorWithPadding

from ...recipe.data import Data
from .base import Collator, register_task
from .classification import Classification
from .padding import fit_padding_
from .text import TextInputs, token_limit

_DEFAULT_LENGTH = 512


@register_task
class TextClassification(TextInputs, Classification):
    """Sequence classification with a tokenizer."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    columns: ClassVar = {"text": ("text", "sentence"), "label": ("label", "labels")}
    optional = ("text_pair",)

    def texts(self, dataset: Dataset) -> Iterable[str]:
        """Return the texts, and those paired with them."""
        return chain.from_iterable(dataset[name] for name in ("text", "text_pair") if name in dataset.column_names)

    def longest(self, processor: Any, data: Data) -> int:
        """Return `data.max_length`, or the tokenizer's own limit."""
        limit = token_limit(processor) or _DEFAULT_LENGTH
        return min(data.max_length or limit, limit)

    def encode(self, dataset: Dataset, processor: Any, data: Data) -> Dataset:
        """Tokenize with truncation to `data.max_length`, or to the tokenizer's own limit."""
        length = self.longest(processor, data)

        def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
            encoded = dict(processor(batch["text"], batch.get("text_pair"), truncation=True, max_length=length))
            return {**encoded, "labels": batch["label"]}

        return dataset.map(tokenize, batched=True, remove_columns=dataset.column_names, desc="tokenizing")

    def fit_padding_(self, model: Any, encoded: Dataset, processor: Any, key: str, *, trains: bool) -> list[str]:
        """Let a model that `trains` know the tokenizer's padding token where it minds; RecipeError where it cannot."""
        return fit_padding_(model, encoded, processor, key, trains=trains)

    def collator(self, processor: Any, data: Data | None = None, seed: int = 0) -> Collator:
        """Return a collator that pads to the longest text of the batch."""
        return DataCollatorWithPadding(processor)
