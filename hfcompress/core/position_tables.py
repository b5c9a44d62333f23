"""What configs do not say of learned positions, as data per model type: where a grid lies, and where rows begin.

Tables of the positions of tokens are found in the model itself (modules/token_positions.py), whatever its type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class PositionTable:
    """A table with one row per position; `path` is relative to the base model."""

    path: str
    after_padding: bool = False  # positions count from pad_token_id + 1, as fairseq's models do
    grid: bool = False  # a parameter (1, leading + patches, width)
    leading: int = 1  # rows of a grid before that of the first patch
    fixed: bool = False  # the grid is of the only image size taken; otherwise interpolated on every forward


_TABLES: dict[str, PositionTable] = {}


def register_position_table(model_type: str, table: PositionTable) -> PositionTable:
    """Say where a model type keeps its positions; raises ValueError when it is already known."""
    if model_type in _TABLES:
        raise ValueError(f"the position table of {model_type!r} is already registered")
    _TABLES[model_type] = table
    return table


def position_table(model: nn.Module) -> PositionTable | None:
    """Return what is known of a transformers model's learned positions by its type, or None."""
    return _TABLES.get(str(getattr(getattr(model, "config", None), "model_type", "")))


def longest_input(config: Any) -> int:
    """Return how many tokens a config's positions allow; 0 when it sets no limit."""
    rows = int(getattr(config, "max_position_embeddings", 0) or 0)
    table = _TABLES.get(str(config.model_type))
    return max(rows - first_position(config, table), 0)


def usual_image_size(config: Any) -> int | tuple[int, int]:
    """Return the pixels per side that a config names; 224 where it names none, as of networks that take any size."""
    return getattr(config, "image_size", None) or 224


def only_image_size(config: Any) -> tuple[int, int] | None:
    """Return the (height, width) of the only images a model of this config takes; None where there are others."""
    table, size = _TABLES.get(str(config.model_type)), usual_image_size(config)
    if table is None or not table.fixed:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def first_position(config: Any, table: PositionTable | None) -> int:
    """Return the row of the first token."""
    pad = getattr(config, "pad_token_id", None)
    return pad + 1 if table is not None and table.after_padding and pad is not None else 0


_EMBEDDINGS = "embeddings.position_embeddings"
for _type in ("bert", "distilbert", "electra"):
    register_position_table(_type, PositionTable(_EMBEDDINGS))
_AFTER_PADDING = (
    "roberta xlm-roberta camembert mpnet longformer esm ibert xlm-roberta-xl data2vec-text roberta-prelayernorm xmod "
    "luke lilt layoutlmv3 markuplm"
)
for _type in _AFTER_PADDING.split():
    register_position_table(_type, PositionTable(_EMBEDDINGS, after_padding=True))
register_position_table("gpt2", PositionTable("wpe"))
register_position_table("dinov2", PositionTable(_EMBEDDINGS, grid=True))
register_position_table("vit", PositionTable(_EMBEDDINGS, grid=True, fixed=True))
register_position_table("deit", PositionTable(_EMBEDDINGS, grid=True, fixed=True, leading=2))
