"""Example inputs of a model, made from its config and its forward signature."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ExportError
from ..core.model_classes import is_multiple_choice
from ..core.position_tables import longest_input, usual_image_size

DEFAULT_LENGTH = 16
CHOICES = 4


@dataclass(frozen=True)
class InputSpec:
    """What a model takes: the names in the order its tools expect, and the bounds of each value."""

    names: tuple[str, ...]
    vocab_size: int = 0
    pad_token_id: int | None = None
    token_types: int = 1
    max_length: int = 0  # tokens; 0: the config sets no limit
    channels: int = 3
    image_size: tuple[int, int] = (0, 0)
    choices: int = 0  # texts for each example, of a model that picks one of them; 0: one text, and no choice

    @property
    def is_image(self) -> bool:
        """Whether the model takes pixels."""
        return self.names[0] == "pixel_values"

    @property
    def text_axes(self) -> tuple[str, ...]:
        """Names of the dimensions of a text input after the batch's."""
        return ("choices", "sequence") if self.choices else ("sequence",)


def spec_of(model: nn.Module, *, one_graph: bool = True) -> InputSpec:
    """Return what a transformers model takes; ExportError when it is neither text nor images.

    one_graph: refuse, likewise, what no engine could run as one graph.
    """
    return spec_from(model.config, type(model), one_graph=one_graph)


def spec_from(config: Any, model_class: type, *, one_graph: bool = True) -> InputSpec:
    """Return what the model class takes under this config, without building the model; see `spec_of`."""
    main = str(getattr(model_class, "main_input_name", ""))
    if main == "pixel_values":
        channels = int(getattr(config, "num_channels", 3))
        return InputSpec((main,), channels=channels, image_size=_pair(usual_image_size(config)))
    if main != "input_ids":
        raise ExportError(f"{model_class.__name__} takes {main!r}; only 'input_ids' and 'pixel_values' are known here")
    if one_graph and getattr(config, "is_encoder_decoder", False) and model_class.can_generate():  # type: ignore[attr-defined]
        raise ExportError(
            f"a {model_class.__name__} writes text, with a decoder that reads what it wrote: that is no one graph. "
            "optimum exports such models"
        )
    accepted = inspect.signature(model_class.forward).parameters  # type: ignore[attr-defined]
    types = int(getattr(config, "type_vocab_size", 1) or 1)
    # RoBERTa accepts token types but has one only: its tokenizer makes none, and no other tool's export has the input.
    optional = {"attention_mask": True, "token_type_ids": types > 1}
    names = (main, *(name for name, wanted in optional.items() if wanted and name in accepted))
    pad = getattr(config, "pad_token_id", None)
    choices = CHOICES if is_multiple_choice(model_class) else 0
    return InputSpec(names, int(config.vocab_size), pad, types, longest_input(config), choices=choices)


def is_image(model: nn.Module) -> bool:
    """Say whether the model takes pixels."""
    return spec_of(model).is_image


def example_inputs(
    model: nn.Module | InputSpec,
    batch: int,
    length: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    mask_zeros: bool = False,
) -> dict[str, Tensor]:
    """Return random valid inputs, each a tensor of its own: ids, mask, types (batch, length), or pixels (B, C, H, W).

    Of multiple choice, texts are (batch, choices, length).

    `mask_zeros` pads the tail of every example but the first (of the first too when it is alone): a tracer folds away
    a mask of ones. Raises ExportError when `length` exceeds what the model's positions allow.
    """
    spec = model if isinstance(model, InputSpec) else spec_of(model)
    generator = torch.Generator().manual_seed(seed)
    if spec.is_image:
        size = _pair(image_size) if image_size else spec.image_size
        return {"pixel_values": torch.randn(batch, spec.channels, *size, generator=generator)}
    length = length or min(DEFAULT_LENGTH, spec.max_length or DEFAULT_LENGTH)
    if spec.max_length and length > spec.max_length:
        raise ExportError(f"length {length} is more than the {spec.max_length} tokens this model takes")
    texts = batch * (spec.choices or 1)
    made = {
        "input_ids": _ids(spec, texts, length, generator),
        "attention_mask": _mask(texts, length, mask_zeros),
        "token_type_ids": torch.randint(spec.token_types, (texts, length), generator=generator),
    }
    shape = (batch, spec.choices, length) if spec.choices else (batch, length)
    return {name: made[name].view(shape) for name in spec.names}


def _ids(spec: InputSpec, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Return ids that are never the padding token, from which some models derive positions."""
    ids = torch.randint(spec.vocab_size, (batch, length), generator=generator)
    if spec.pad_token_id is not None:
        ids[ids == spec.pad_token_id] = (spec.pad_token_id + 1) % spec.vocab_size
    return ids


def _mask(batch: int, length: int, zeros: bool) -> Tensor:
    mask = torch.ones(batch, length, dtype=torch.long)
    if zeros:
        for row in range(0 if batch == 1 else 1, batch):
            mask[row, max(1, length - 1 - row * length // (2 * batch)) :] = 0
    return mask


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(height), int(width)
