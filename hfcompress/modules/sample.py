"""A small batch made from a model's config, and the model's answers to it: they show whether a change kept these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.answers import tensors_of
from ..core.errors import TargetError
from ..core.synthetic_inputs import EXAMPLES, synthetic_batch

_TOKENS, _CHOICES = 12, 2


def sample_inputs(model: nn.Module, length: int = _TOKENS, seed: int = 0) -> dict[str, Tensor]:
    """Return a batch of two random examples: texts of `length` tokens each, or what else the model reads.

    Raises TargetError for a model of which no example can be made.
    """
    if getattr(model, "main_input_name", "") != "input_ids":
        batch, error = synthetic_batch(model)
        if batch is None:
            raise TargetError(f"no example can be made that a {type(model).__name__} reads") from error
        return batch
    device = next(model.parameters(), torch.empty(0)).device
    made = _tokens(model, model.config, length, torch.Generator().manual_seed(seed))
    return {name: value.to(device) for name, value in made.items()}


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Return every tensor of floats that the model answers with, in order; the model keeps its mode."""
    training = model.training
    model.eval()
    try:
        return [found.float() for found in tensors_of(model(**inputs)) if found.is_floating_point()]
    finally:
        model.train(training)


def close(before: list[Tensor], after: list[Tensor], share: float) -> bool:
    """Say whether two answers differ by no more than `share` of the largest number of each tensor."""
    return len(before) == len(after) and all(
        a.shape == b.shape and bool((a - b).abs().max() <= share * a.abs().max().clamp(min=1e-6))
        for a, b in zip(before, after, strict=True)
    )


def _tokens(model: nn.Module, config: Any, length: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return ids without padding, with the end of a sequence last where the config names one."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "cls", "sep", "mask")}
    plain = [i for i in range(min(int(config.vocab_size), 1000)) if i not in special] or [0]
    choices = (_CHOICES,) if type(model).__name__.endswith("ForMultipleChoice") else ()
    picks = torch.randint(len(plain), (EXAMPLES, *choices, length), generator=generator)
    ids = torch.tensor(plain)[picks]
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < int(config.vocab_size):
        ids[..., -1] = end
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return made | ({"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {})
