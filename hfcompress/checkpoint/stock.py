"""Writing into the stock config what fits there, so that the checkpoint loads without this package."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..core.errors import FamilyError
from ..core.families import Block, Family, blocks_of, family_of


def fold_into_config_(model: nn.Module) -> None:
    """Set the config's feed-forward width and head count where every block agrees and the config can say it."""
    try:
        family = family_of(model)
    except FamilyError:
        return  # a model of an unknown type was not changed in ways a family would know
    blocks = blocks_of(model, family)
    _fold_ffn(model, family, blocks)
    _fold_heads(model, family, blocks)


def _fold_ffn(model: nn.Module, family: Family, blocks: list[Block]) -> None:
    width = _common(blocks, lambda b: int(model.get_submodule(b.down).in_features))  # type: ignore[arg-type]
    if width and family.ffn_key:
        setattr(model.config, family.ffn_key, width)


def _fold_heads(model: nn.Module, family: Family, blocks: list[Block]) -> None:
    heads = _common(blocks, lambda b: int(model.get_submodule(b.query).out_features) // b.head_size)  # type: ignore[arg-type]
    if heads and family.heads_key and family.head_size_key and heads != getattr(model.config, family.heads_key):
        setattr(model.config, family.head_size_key, blocks[0].head_size)
        setattr(model.config, family.heads_key, heads)


def _common(blocks: list[Block], size: Callable[[Block], int]) -> int | None:
    sizes = {size(block) for block in blocks}
    return sizes.pop() if len(sizes) == 1 else None
