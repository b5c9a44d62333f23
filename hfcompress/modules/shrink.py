"""Physical removal of attention heads and feed-forward units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.families import Block


@torch.no_grad()
def keep_rows(linear: nn.Linear, index: Tensor) -> nn.Linear:
    """Return a layer with only the outputs `index` of `linear`; bias included."""
    bias = None if linear.bias is None else linear.bias[index]
    return _linear(linear, linear.weight[index], bias)


@torch.no_grad()
def keep_columns(linear: nn.Linear, index: Tensor) -> nn.Linear:
    """Return a layer that reads only the inputs `index` of `linear`."""
    return _linear(linear, linear.weight[:, index], linear.bias)


def keep_heads_(model: nn.Module, block: Block, keep: Tensor) -> None:
    """Keep the heads where `keep` (heads,) is True: rows of query, key and value, columns of the output projection."""
    index = torch.arange(len(keep) * block.head_size).view(len(keep), -1)[keep.cpu()].flatten()
    for path in (block.query, block.key, block.value):
        _replace_rows(model, path, index)
    _replace_columns(model, block.output, index)


def keep_units_(model: nn.Module, block: Block, keep: Tensor) -> None:
    """Keep the feed-forward units where `keep` (width,) is True: rows that widen, columns that narrow."""
    index = keep.cpu().nonzero().flatten()
    for path in block.up:
        _replace_rows(model, path, index)
    _replace_columns(model, block.down, index)


def _replace_rows(model: nn.Module, path: str, index: Tensor) -> None:
    old = model.get_submodule(path)
    model.set_submodule(path, keep_rows(old, index.to(old.weight.device)))  # type: ignore[arg-type]


def _replace_columns(model: nn.Module, path: str, index: Tensor) -> None:
    old = model.get_submodule(path)
    model.set_submodule(path, keep_columns(old, index.to(old.weight.device)))  # type: ignore[arg-type]


def _linear(old: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    new.weight = nn.Parameter(weight.clone(), requires_grad=old.weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.clone(), requires_grad=old.bias.requires_grad)
    return new.train(old.training)


@torch.no_grad()
def drop_dead_(model: nn.Module, block: Block) -> None:
    """Remove heads and units whose every column of the narrowing projection is zero: nothing reads them."""
    output: Tensor = model.get_submodule(block.output).weight  # type: ignore[assignment]
    heads = output.any(0).view(-1, block.head_size).any(1)
    units = model.get_submodule(block.down).weight.any(0)  # type: ignore[operator]
    for keep, remove_ in ((heads, keep_heads_), (units, keep_units_)):
        keep[0] |= not keep.any()  # an empty layer could not be built
        if not keep.all():
            remove_(model, block, keep)
