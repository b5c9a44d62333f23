"""Filling masks: a masked language model, measured on a mask that is the same for every model."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from transformers import DataCollatorForLanguageModeling

from ...core.errors import RecipeError
from ...ops.reductions import IGNORED
from ...recipe.data import Data, Masking
from .base import Collator, register_task
from .language_modelling import LanguageModelling, block_length, blocks, tokenized
from .padding import require_padding

EVALUATION_SEED = 0  # not the recipe's: runs of different seeds are measured on the same mask
SPECIAL, BEGIN, END = "special_tokens_mask", "begin", "end"
_FILL = {"labels": IGNORED}  # what padding holds, where it is neither 0 nor the tokenizer's own padding


@register_task
class FillMask(LanguageModelling):
    """Masked language modelling of joined text cut into blocks, or of each text by itself (`data.join: false`).

    Predictions are (examples, length, 2): each masked token's loss in nats, and the token the model finds likeliest.
    """

    name = "fill-mask"
    auto_class = "AutoModelForMaskedLM"
    reduction = "masked_token"
    prediction = "masked token"

    def load_processor(self, source: str | None, config: Any, data: Data, revision: str | None = None) -> Any:
        """Load the tokenizer; RecipeError when it has no token that stands for a masked one."""
        tokenizer = super().load_processor(source, config, data, revision)
        if tokenizer.mask_token is None:
            raise RecipeError(f"processor: the tokenizer of {source!r} has no mask token; choose one that has.")
        if not data.join:
            require_padding(tokenizer, "processor")
        return tokenizer

    def encode(self, dataset: Dataset, processor: Any, data: Data) -> Dataset:
        """Return tokens, and which of them may be masked; nothing is masked yet.

        Raises RecipeError for blocks longer than the model, DataError when there is not a single one.
        """
        length = block_length(processor, data)
        words = data.masking.whole_words
        if words and not processor.is_fast:
            raise RecipeError("data.masking.whole_words: only a fast tokenizer knows where words begin.")
        options: dict[str, Any] = {
            "return_special_tokens_mask": True,
            "return_offsets_mapping": words,
            "verbose": False,
        }
        if not data.join:
            options |= {"truncation": True, "max_length": length}

        def tokenize(texts: list[str]) -> Mapping[str, list[Any]]:
            found = dict(processor(texts, **options))
            for name, part in ((BEGIN, 0), (END, 1)) if words else ():
                found[name] = [[offsets[part] for offsets in text] for text in found["offset_mapping"]]
            found.pop("offset_mapping", None)
            return found

        tokens = tokenized(dataset, tokenize)
        return blocks(tokens, length) if data.join else tokens.with_format("numpy")

    def longest(self, processor: Any, data: Data) -> int | None:
        """Return how many tokens of each text are read, where texts are not joined."""
        return None if data.join else block_length(processor, data)

    def for_evaluation(self, encoded: Dataset, processor: Any, data: Data) -> Dataset:
        """Return the examples masked once, each by itself alone, and padded to the longest."""
        mask = self.collator(processor, data, EVALUATION_SEED)
        masked = [{name: row[0].numpy() for name, row in mask([example]).items()} for example in encoded]
        length = max(len(example["input_ids"]) for example in masked)
        fill = {**_FILL, "input_ids": processor.pad_token_id or 0}
        rows = {name: [_padded(e[name], length, fill.get(name, 0)) for e in masked] for name in masked[0]}
        features = Features({name: List(Value("int64"), length=length) for name in rows})
        return Dataset.from_dict(rows, features=features).with_format("numpy")

    def collator(self, processor: Any, data: Data | None = None, seed: int = 0) -> Collator:
        """Return a collator that pads and masks; what is masked already (`for_evaluation`) it only stacks."""
        return Masker(processor, Masking() if data is None else data.masking, seed)


class Masker:
    """Masks tokens as BERT does: of those chosen, 80% become the mask token, 10% another token, 10% stay.

    The choice follows from the seed and the batch's tokens alone. So it is new in every epoch, whose batches are
    others, and yet the same in a resumed run, in any process and however far ahead batches are loaded.
    """

    random_inputs = "the data collator masks other tokens each time"

    def __init__(self, processor: Any, masking: Masking, seed: int) -> None:
        self.processor, self.masking, self.seed = processor, masking, seed
        with warnings.catch_warnings():  # with whole words every chosen token is masked; the setting's help says so
            warnings.simplefilter("ignore")
            self.library = DataCollatorForLanguageModeling(
                processor, mlm_probability=masking.share, whole_word_mask=masking.whole_words
            )

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return padded inputs with `labels` that are -100 at every token that was not chosen."""
        if "labels" in examples[0]:
            return {name: torch.from_numpy(np.stack([e[name] for e in examples])) for name in examples[0]}
        batch = [{name: np.asarray(value).tolist() for name, value in example.items()} for example in examples]
        self.library.generator = torch.Generator().manual_seed(_seed(self.seed, batch))
        return {name: value.long() for name, value in self.library(_with_offsets(batch)).items()}


def _seed(seed: int, batch: Sequence[Mapping[str, Any]]) -> int:
    digest = hashlib.blake2b(str(seed).encode(), digest_size=7)
    for example in batch:
        digest.update(np.asarray(example["input_ids"], dtype=np.int64).tobytes() + b"|")
    return int.from_bytes(digest.digest(), "big")


def _with_offsets(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give examples with word boundaries their offsets back, padded to the longest, as the tokenizer does not."""
    if BEGIN not in batch[0]:
        return batch
    longest = max(len(example["input_ids"]) for example in batch)
    for example in batch:
        offsets = list(zip(example.pop(BEGIN), example.pop(END), strict=True))
        example["offset_mapping"] = offsets + [(0, 0)] * (longest - len(offsets))
    return batch


def _padded(row: np.ndarray, length: int, value: int) -> np.ndarray:
    return np.pad(row, (0, length - len(row)), constant_values=value)
