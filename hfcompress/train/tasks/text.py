"""What tasks on text share: a tokenizer, checked columns, and the lengths inference is timed at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import AutoTokenizer

from ...core.errors import DataError, RecipeError
from ...core.position_tables import longest_input
from ...modules.tokens import knows_no_word
from ...recipe.data import Data
from ...recipe.data_report import Cut
from ...recipe.shape import Shape
from ..example_keys import text_keys
from .base import Task, load_pretrained

_AT_ONCE = 1000  # texts that are tokenized at once
_NO_LIMIT = 1_000_000  # tokenizers without a limit say 1e30
_LOOKED_AT = 10_000  # examples in which unknown tokens are counted
_MARKS = ("bos_token", "eos_token", "sep_token", "cls_token")
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


class TextInputs(Task):
    """A task whose model reads token ids."""

    main_input: ClassVar[str] = "input_ids"

    def load_processor(self, source: str | None, config: Any, data: Data, revision: str | None = None) -> Any:
        """Load the tokenizer and let it know the most tokens the model has positions for.

        A model from scratch has none, so the recipe has to name one.
        """
        if source is None:
            raise RecipeError(
                "processor: a text model from scratch needs a tokenizer; give a Hub id or folder that has one."
            )
        tokenizer = load_pretrained(AutoTokenizer, source, "tokenizer", revision)
        if knows_no_word(tokenizer):
            raise RecipeError(
                f"no tokenizer can be loaded from {source!r} (it has no vocabulary file, such as tokenizer.json, and "
                "transformers made up one that knows no word). Set 'processor' to a Hub id or folder that has one."
            )
        if positions := longest_input(config):
            tokenizer.model_max_length = min(positions, tokenizer.model_max_length)
        return tokenizer

    def fit_config_(self, config: Any, processor: Any, given: Mapping[str, Any]) -> None:
        """Give a config from scratch the tokenizer's vocabulary and special tokens, where the recipe says nothing."""
        if "vocab_size" not in given:
            config.vocab_size = len(processor)
        for name in _SPECIAL:
            if name not in given and hasattr(config, name):
                setattr(config, name, getattr(processor, name))

    def check_encoded(self, config: Any, *splits: Dataset) -> None:
        """Raise RecipeError when the data holds tokens for which the model has no row."""
        for dataset in splits:
            ids = dataset.with_format("arrow")[:]["input_ids"]
            largest = pc.max(pc.list_flatten(ids)).as_py()
            if largest is not None and largest >= config.vocab_size:
                raise RecipeError(
                    f"processor: the tokenizer makes token {largest:,} of this data, the model has a vocabulary of "
                    f"{config.vocab_size:,}: choose the tokenizer the model was made for."
                )

    def unknown_share(self, encoded: Dataset, processor: Any) -> float | None:
        """Return the share of unknown tokens among those that are not special, of up to 10,000 examples."""
        unknown, names = processor.unk_token_id, processor.special_tokens_map
        if unknown is None or any(names.get(name) == processor.unk_token for name in _MARKS):
            return None  # one that falls back to bytes has no unknown token, and calls another one so
        rows = range(0, len(encoded), -(-len(encoded) // _LOOKED_AT)) if len(encoded) > _LOOKED_AT else None
        lists = (encoded if rows is None else encoded.select(rows)).with_format("arrow")[:]["input_ids"]
        ids = np.asarray(pc.list_flatten(lists))
        counted = ids[~np.isin(ids, [one for one in processor.all_special_ids if one != unknown])]
        return float((counted == unknown).mean()) if len(counted) else None

    def check_inputs(self, dataset: Dataset, split: str) -> Dataset:
        """Return the dataset; DataError when a text column holds anything but text."""
        for column in {"text", "text_pair"} & set(dataset.column_names):
            if not is_text(dataset.features[column]):
                raise DataError(f"split {split!r}: column {column!r} holds {dataset.features[column]}; expected text.")
        return dataset

    def keys(self, splits: Sequence[tuple[Dataset, Dataset]]) -> tuple[list[np.ndarray], str]:
        """Return hashes of the texts, without regard to case and blanks."""
        return [text_keys(dataset) for dataset, _ in splits], "texts, without regard to case and blanks"

    def longest(self, processor: Any, data: Data) -> int | None:
        """Return how many tokens of each text are read; None when texts are not cut."""
        return None

    def cut(self, dataset: Dataset, encoded: Dataset, processor: Any, data: Data) -> Cut | None:
        """Return how many texts, or pairs, have more tokens than are read: only the longest are tokenized again."""
        length = self.longest(processor, data)
        if length is None:
            return None
        sizes = np.asarray(pc.list_value_length(encoded.with_format("arrow")[:]["input_ids"]))
        full = dataset.select(np.flatnonzero(sizes >= length))
        count = 0
        for rows in full.iter(_AT_ONCE):
            found = processor(rows["text"], rows.get("text_pair"), truncation=False, verbose=False)["input_ids"]
            count += sum(len(ids) > length for ids in found)
        return Cut(texts=count, of=len(dataset), tokens=length)

    def shapes(self, processor: Any) -> list[Shape]:
        """Return one short text, and eight longer ones."""
        return [Shape(batch=1, length=32), Shape(batch=8, length=128)]


def is_text(feature: Any) -> bool:
    """Say whether a column of this feature type holds strings."""
    kind = getattr(feature, "pa_type", None)
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def token_limit(tokenizer: Any) -> int | None:
    """Return the most tokens the tokenizer says its model takes, or None when it does not say."""
    return int(tokenizer.model_max_length) if tokenizer.model_max_length < _NO_LIMIT else None
