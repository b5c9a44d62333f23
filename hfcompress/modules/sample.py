"""A small batch made from a model's config, and the model's answers to it: they show whether a change kept these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.answers import tensors_of
from ..core.errors import TargetError
from ..core.position_tables import usual_image_size

_EXAMPLES, _TOKENS, _CHOICES, _SAMPLES = 2, 12, 2, 4000


def sample_inputs(model: nn.Module, length: int = _TOKENS, seed: int = 0) -> dict[str, Tensor]:
    """Return a batch of two random examples, `length` tokens each, or images, or sound; TargetError for others."""
    main = str(getattr(model, "main_input_name", ""))
    generator = torch.Generator().manual_seed(seed)
    config: Any = model.config
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if main == "input_ids":
        made = _tokens(model, config, length, generator)
    elif main == "pixel_values":
        size = usual_image_size(config)
        height, width = (size, size) if isinstance(size, int) else size
        shape = (_EXAMPLES, int(getattr(config, "num_channels", 3)), int(height), int(width))
        made = {main: torch.randn(shape, generator=generator).to(like.dtype)}
    elif main == "input_values":
        made = {main: torch.randn(_EXAMPLES, _SAMPLES, generator=generator).to(like.dtype)}
    else:
        raise TargetError(f"a {type(model).__name__} reads {main!r}, of which no example can be made here")
    return {name: value.to(like.device) for name, value in made.items()}


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
    picks = torch.randint(len(plain), (_EXAMPLES, *choices, length), generator=generator)
    ids = torch.tensor(plain)[picks]
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < int(config.vocab_size):
        ids[..., -1] = end
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return made | ({"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {})
