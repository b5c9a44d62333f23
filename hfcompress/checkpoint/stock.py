"""Writing into the stock config what fits there, so that the checkpoint loads without this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn

from ..core.errors import CheckpointError, FamilyError
from ..core.families import Block, Family, blocks_of, channel_widths, family_of, head_count, unit_count, width_in
from .structure import apply_structure_, read_structure, skeleton

_HEADS = "num_attention_heads"


def fold_into_config_(model: nn.Module) -> None:
    """Set the config's feed-forward width, head count and hidden size where blocks agree and the config can say it."""
    try:
        family = family_of(model)
    except FamilyError:
        return  # a model of an unknown type was not changed in ways a family would know
    if family.attention is None:
        _fold_channels(model, family)
        return
    try:
        blocks = blocks_of(model, family)
    except FamilyError:
        return
    _fold_ffn(model, family, blocks)
    _fold_heads(model, family, blocks)
    _fold_width(model, family, blocks)
    _fold_split(model, family, blocks)


def _fold_channels(model: nn.Module, family: Family) -> None:
    """Set the widths of a convolutional network's stages; what differs inside them stays in the structure."""
    widths = channel_widths(model, family)
    present = {key: getattr(model.config, key) for key in widths}
    if widths != {key: value if isinstance(value, int) else list(value) for key, value in present.items()}:
        _set_if_buildable(model, widths)


def _fold_ffn(model: nn.Module, family: Family, blocks: list[Block]) -> None:
    width = _common(blocks, lambda b: unit_count(model, b))
    if width and family.ffn_key:
        setattr(model.config, family.ffn_key, width)


def _fold_heads(model: nn.Module, family: Family, blocks: list[Block]) -> None:
    count = _common(blocks, lambda b: head_count(model, b))
    if not (count and family.heads_key and family.head_size_key):
        return
    queries = count * blocks[0].head_size // blocks[0].key_size
    if queries == getattr(model.config, family.heads_key):
        return
    values = {family.heads_key: queries, family.head_size_key: blocks[0].key_size}
    if family.key_heads_key:
        values[family.key_heads_key] = count
    _set_if_buildable(model, values)


def _fold_width(model: nn.Module, family: Family, blocks: list[Block]) -> None:
    """Set the hidden size, with the size of a head beside it, which would otherwise follow from it."""
    widths = {width_in(model.get_submodule(block.query)) for block in blocks}
    if len(widths) > 1 or not family.head_size_key or widths == {getattr(model.config, family.hidden_key)}:
        return
    _set_if_buildable(model, {family.hidden_key: widths.pop(), family.head_size_key: blocks[0].key_size})


def _fold_split(model: nn.Module, family: Family, blocks: list[Block]) -> None:
    """Set hidden size and number of heads of a model type that cuts the one into the other, where they do fit."""
    config: Any = model.config
    heads = getattr(config, "attribute_map", {}).get(_HEADS, _HEADS)
    count, width = (
        _common(blocks, lambda b: head_count(model, b)),
        _common(blocks, lambda b: width_in(model.get_submodule(b.query))),
    )
    values = {family.hidden_key: width, heads: count}
    if family.head_size_key or not (count and width) or count * blocks[0].head_size != width:
        return
    if all(type(getattr(config, key, None)) is int for key in values) and values != {
        key: getattr(config, key) for key in values
    }:
        _set_if_buildable(model, values)


def _set_if_buildable(model: nn.Module, values: dict[str, Any]) -> None:
    """Set these config values, and take them back where the model type refuses them."""
    config: Any = model.config
    before = {key: getattr(config, key) for key in values if hasattr(config, key)}
    for key, value in values.items():
        setattr(config, key, value)
    try:
        type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})
        apply_structure_(skeleton(model), read_structure(model))
    except (ValueError, StrictDataclassError, CheckpointError):
        # such as a hidden size that is not a multiple of the number of heads, or that other sizes follow from
        for key in values:
            delattr(config, key)
        for key, value in before.items():
            setattr(config, key, value)


def _common(blocks: list[Block], size: Callable[[Block], int]) -> int | None:
    sizes = {size(block) for block in blocks}
    return sizes.pop() if len(sizes) == 1 else None
