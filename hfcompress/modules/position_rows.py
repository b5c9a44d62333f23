"""Learned positions of the patches of images: interpolated once to the grid of one image size."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..core.errors import TargetError
from ..core.families import base_prefix
from ..core.position_tables import PositionTable


def rows_of(model: nn.Module, table: PositionTable) -> int:
    """Return how many rows the table has."""
    found = _table(model, table)
    return int(found.shape[1] if table.grid else found.shape[0])


def table_path(model: nn.Module, table: PositionTable) -> str:
    """Return the table's full path."""
    return base_prefix(model) + table.path


@torch.no_grad()
def fit_grid_(model: nn.Module, table: PositionTable, size: int) -> None:
    """Store the positions the model interpolates for images of `size` pixels a side, and make that its size."""
    owner: Any = model.get_submodule(table_path(model, table).rpartition(".")[0])
    name = table.path.rpartition(".")[2]
    old = getattr(owner, name)
    tokens = old.new_empty(1, grid_rows(model, size, table), old.shape[-1])
    new = owner.interpolate_pos_encoding(tokens, size, size)
    setattr(owner, name, nn.Parameter(new.clone(), requires_grad=old.requires_grad))
    for module in (owner, owner.patch_embeddings):
        if hasattr(module, "image_size"):
            module.image_size = (size, size)
    owner.patch_embeddings.num_patches = tokens.shape[1] - table.leading
    for config in configs_of(model):
        config.image_size = size


def grid_rows(model: nn.Module, size: int, table: PositionTable) -> int:
    """Return the rows a grid for images of `size` pixels a side has; TargetError when patches do not divide it."""
    patch = _patch(model)
    if size % patch[0] or size % patch[1]:
        raise TargetError(f"image size {size} is not a multiple of the model's patch, {patch[0]}x{patch[1]}")
    return table.leading + (size // patch[0]) * (size // patch[1])


def patch_count(model: nn.Module, size: tuple[int, int] | None = None) -> int:
    """Return how many whole patches an image of `size` (height, width) has, by default one of the config's size."""
    patch: Any = _patch(model)
    default: Any = model.config.image_size  # type: ignore[union-attr]
    height, width = size or ((default, default) if isinstance(default, int) else default)
    return (height // patch[0]) * (width // patch[1])


def configs_of(model: nn.Module) -> list[Any]:
    """Return the configs that the model and its parts hold, each once."""
    return list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())


def _table(model: nn.Module, table: PositionTable) -> torch.Tensor:
    path = table_path(model, table)
    return model.get_parameter(path) if table.grid else model.get_submodule(path).weight  # type: ignore[return-value]


def _patch(model: nn.Module) -> tuple[int, int]:
    size: Any = model.config.patch_size  # type: ignore[union-attr]
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(height), int(width)
