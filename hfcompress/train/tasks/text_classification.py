"""Text classification: one label for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, ClassVar

from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorWithPadding

from ...core.errors import DataError, RecipeError
from ...recipe.schema import Data, Shape
from .base import Collator, load_pretrained, missing_values, register_task
from .classification import Classification, is_text

_NO_LIMIT = 1_000_000  # tokenizers without a limit say 1e30
_DEFAULT_LENGTH = 512


@register_task
class TextClassification(Classification):
    """Sequence classification with a tokenizer."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    main_input = "input_ids"
    columns: ClassVar = {"text": ("text", "sentence"), "label": ("label", "labels")}
    optional = ("text_pair",)

    def load_processor(self, source: str | None, config: Any, data: Data, revision: str | None = None) -> Any:
        """Load the tokenizer; a model from scratch has none, so the recipe has to name one."""
        if source is None:
            raise RecipeError(
                "processor: a text model from scratch needs a tokenizer; give a Hub id or folder that has one."
            )
        return load_pretrained(AutoTokenizer, source, "tokenizer", revision)

    def check_inputs(self, dataset: Dataset, split: str) -> Dataset:
        """Return the dataset; DataError when a text column holds anything but text."""
        for column in {"text", "text_pair"} & set(dataset.column_names):
            missing_values(dataset, column, split)
            if not is_text(dataset.features[column]):
                raise DataError(f"split {split!r}: column {column!r} holds {dataset.features[column]}; expected text.")
        return dataset

    def texts(self, dataset: Dataset) -> Iterable[str]:
        """Return the texts, and those paired with them."""
        return chain.from_iterable(dataset[name] for name in ("text", "text_pair") if name in dataset.column_names)

    def encode(self, dataset: Dataset, processor: Any, data: Data) -> Dataset:
        """Tokenize with truncation to `data.max_length`, or to the tokenizer's own limit."""
        limit = processor.model_max_length if processor.model_max_length < _NO_LIMIT else _DEFAULT_LENGTH
        length = min(data.max_length or limit, limit)

        def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
            encoded = dict(processor(batch["text"], batch.get("text_pair"), truncation=True, max_length=length))
            return {**encoded, "labels": batch["label"]}

        return dataset.map(tokenize, batched=True, remove_columns=dataset.column_names, desc="tokenizing")

    def collator(self, processor: Any) -> Collator:
        """Return a collator that pads to the longest text of the batch."""
        return DataCollatorWithPadding(processor)

    def shapes(self, processor: Any) -> list[Shape]:
        """Return one short text, and eight longer ones."""
        return [Shape(batch=1, length=32), Shape(batch=8, length=128)]
