"""The token that fills up batches: a classifier that looks for it has to know the one its tokenizer uses."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset

from ...core.errors import RecipeError

_ADDED = 4  # tokens of padding
_LOOKED_AT = 64  # examples among which a short one is looked for
_SAME = 1e-3  # of the answer to the short one: what rounding may change


def fit_padding_(model: Any, encoded: Dataset, tokenizer: Any, key: str, *, trains: bool) -> list[str]:
    """Let a model that `trains` know its tokenizer's padding token where it minds; return in words what was changed.

    Raises RecipeError, with what to write where, for a tokenizer that has none, and for a model that would have to be
    changed though it is to be measured as it is.
    """
    require_padding(tokenizer, "processor")
    wanted, own = tokenizer.pad_token_id, getattr(model.config, "pad_token_id", None)
    if own == wanted or not _minds(model, encoded, tokenizer):
        return []
    model.config.pad_token_id = wanted
    if _minds(model, encoded, tokenizer):  # padding changes its answers whatever token it is
        model.config.pad_token_id = own
        return []
    if trains:
        return [f"{key}: pad_token_id of its config was {own} and is now {wanted}, the padding of its tokenizer."]
    model.config.pad_token_id = own
    raise RecipeError(
        f"{key}: pad_token_id in its config.json is {'not set' if own is None else own}, the tokenizer pads with token "
        f"{wanted} ({tokenizer.pad_token!r}), and this {type(model).__name__} looks for padding to find the end of a "
        f'text: write "pad_token_id": {wanted} into its config.json.'
    )


def require_padding(tokenizer: Any, key: str) -> None:
    """Raise RecipeError, with the lines that mend it, where a tokenizer has no token to fill up batches with."""
    if tokenizer.pad_token_id is not None:
        return
    name = tokenizer.eos_token or tokenizer.unk_token or "<pad>"
    raise RecipeError(
        f"{key}: the tokenizer has no padding token, and texts of other lengths make no batch without. Choose one the "
        f'model was trained with, or {name!r}, and write two lines: "pad_token": "{name}" into tokenizer_config.json, '
        f'and "pad_token_id": {tokenizer.convert_tokens_to_ids(name)} into the config.json of the model.'
    )


@torch.no_grad()
def _minds(model: Any, encoded: Dataset, tokenizer: Any) -> bool:
    """Say whether an example gets another answer, or none, where it is padded."""
    names = [name for name in encoded.column_names if name in tokenizer.model_input_names]
    few = [{name: example[name] for name in names} for example in encoded.select(range(min(_LOOKED_AT, len(encoded))))]
    shortest = min(few, key=lambda example: len(example["input_ids"]) or 1 << 30)
    length = min(len(shortest["input_ids"]), max(1, tokenizer.model_max_length - _ADDED))
    example = {name: values[:length] for name, values in shortest.items()}
    expected = _answer(model, tokenizer.pad([example], return_tensors="pt"))
    padded = tokenizer.pad([example] * 2, padding="max_length", max_length=length + _ADDED, return_tensors="pt")
    try:
        found = _answer(model, padded)
    except ValueError:  # "Cannot handle batch sizes > 1 if no padding token is defined."
        return True
    return bool((found - expected).abs().max() > _SAME * expected.abs().max().clamp(min=1e-6))


def _answer(model: Any, batch: Any) -> torch.Tensor:
    device = next(model.parameters()).device
    logits: torch.Tensor = model(**batch.to(device)).logits[0].float()
    return logits
