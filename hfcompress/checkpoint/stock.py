"""Writing into the stock config what fits there, so that the checkpoint loads without this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn

from ..core.errors import FamilyError
from ..core.families import Block, Family, blocks_of, family_of, head_count, unit_count
from .structure import skeleton


def fold_into_config_(model: nn.Module) -> None:
    """Set the config's feed-forward width and head count where every block agrees and the config can say it."""
    try:
        family = family_of(model)
        blocks = blocks_of(model, family)
    except FamilyError:
        return  # a model of an unknown type was not changed in ways a family would know
    _fold_ffn(model, family, blocks)
    _fold_heads(model, family, blocks)


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


def _set_if_buildable(model: nn.Module, values: dict[str, Any]) -> None:
    """Set these config values, and take them back where the model type refuses them."""
    config: Any = model.config
    before = {key: getattr(config, key) for key in values if hasattr(config, key)}
    for key, value in values.items():
        setattr(config, key, value)
    try:
        type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})
        skeleton(model)
    except (ValueError, StrictDataclassError):  # such as a hidden size that is not a multiple of the number of heads
        for key in values:
            delattr(config, key)
        for key, value in before.items():
            setattr(config, key, value)


def _common(blocks: list[Block], size: Callable[[Block], int]) -> int | None:
    sizes = {size(block) for block in blocks}
    return sizes.pop() if len(sizes) == 1 else None
