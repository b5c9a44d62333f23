"""Physical removal of attention heads and feed-forward units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..core.errors import FamilyError, TargetError
from ..core.families import Attention, Block
from .matrix import matrix
from .parametrizations import trainable


@torch.no_grad()
def keep_rows(layer: nn.Module, index: Tensor) -> nn.Module:
    """Return a layer with only the outputs `index` of a linear layer or Conv1D; bias included."""
    bias: Any = layer.bias
    return _like(layer, matrix(layer)[index], None if bias is None else bias[index])


@torch.no_grad()
def keep_columns(layer: nn.Module, index: Tensor) -> nn.Module:
    """Return a layer that reads only the inputs `index` of a linear layer or Conv1D."""
    return _like(layer, matrix(layer)[:, index], layer.bias)  # type: ignore[arg-type]


def keep_heads_(model: nn.Module, attention: Attention, keep: Tensor) -> None:
    """Keep the heads where `keep` (heads,) is True, of a Block's attention or of its `cross` attention.

    What goes: rows of query, key and value, columns of the output projection, entries of per-head tables, and what the
    attention's attributes count. With grouped queries a head is a key/value head with its queries. Raises FamilyError
    with the reason where heads can't go, TargetError for layers that can't be cut.
    """
    if attention.locked:
        raise FamilyError(f"{attention.module}: heads can't be removed: {attention.locked}")
    keep = keep.cpu()
    inner = _spread(keep, attention.key_size)
    if attention.fused:
        size = len(keep) * attention.key_size
        _replace(model, attention.query, keep_rows, torch.cat([inner + i * size for i in range(3)]))
    else:
        _replace(model, attention.query, keep_rows, _spread(keep, attention.head_size))
        for path in (attention.key, attention.value, *attention.more):
            _replace(model, path, keep_rows, inner)
    _replace(model, attention.output, keep_columns, _spread(keep, attention.head_size))
    for path in attention.tables:
        _cut_table(model, path, keep)
    module, left = model.get_submodule(attention.module), int(keep.sum())
    for names, size in ((attention.counts, left), (attention.widths, left * attention.head_size)):
        for name in names:
            setattr(module, name, size)


def keep_units_(model: nn.Module, block: Block, keep: Tensor) -> None:
    """Keep the feed-forward units where `keep` (width,) is True: rows that widen, columns that narrow."""
    index = keep.cpu().nonzero().flatten()
    for path in block.up:
        _replace(model, path, keep_rows, index)
    _replace(model, block.down, keep_columns, index)


def refuse_uncuttable(path: str, module: nn.Module) -> None:
    """Raise TargetError for a layer that no rows or columns can be taken out of."""
    if not isinstance(module, nn.Linear | Conv1D):
        raise TargetError(
            f"{path}: a {type(module).__name__} can't be cut; prune heads and units first, before layers are packed or "
            "factorized"
        )


def _spread(keep: Tensor, size: int) -> Tensor:
    """Return the indices of the rows, `size` for each head, of the heads kept."""
    return torch.arange(len(keep) * size).view(len(keep), -1)[keep].flatten()


def _replace(model: nn.Module, path: str, cut: Any, index: Tensor) -> None:
    old: Any = model.get_submodule(path)
    refuse_uncuttable(path, old)
    model.set_submodule(path, cut(old, index.to(old.weight.device)))


@torch.no_grad()
def _cut_table(model: nn.Module, path: str, keep: Tensor) -> None:
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    old: Any = getattr(module, name)
    setattr(module, name, nn.Parameter(old[..., keep.to(old.device)].clone(), requires_grad=old.requires_grad))


def _like(old: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a layer of the same class with these values; `weight` is (rows, columns)."""
    rows, columns = weight.shape
    new: nn.Module
    with torch.device("meta"):
        if isinstance(old, Conv1D):
            new, weight = Conv1D(rows, columns), weight.T
        else:
            new = nn.Linear(columns, rows, bias=bias is not None)
    weight = weight.clone(memory_format=torch.contiguous_format)
    new.weight = nn.Parameter(weight, requires_grad=trainable(old))
    if bias is not None:
        new.bias = nn.Parameter(bias.clone(), requires_grad=old.bias.requires_grad)
    return new.train(old.training)


@torch.no_grad()
def drop_dead_(model: nn.Module, block: Block) -> None:
    """Remove heads and units whose every column of the narrowing projection is zero: nothing reads them."""
    heads = matrix(model.get_submodule(block.output)).any(0).view(-1, block.head_size).any(1)
    units = matrix(model.get_submodule(block.down)).any(0)
    if block.locked:
        heads = torch.ones_like(heads)
    for keep, remove_ in ((heads, keep_heads_), (units, keep_units_)):
        keep[0] |= not keep.any()  # an empty layer could not be built
        if not keep.all():
            remove_(model, block, keep)
