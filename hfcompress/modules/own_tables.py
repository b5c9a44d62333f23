"""Packed embedding tables of classes that do more than look rows up: scale them, count positions from an offset, …

What a class adds is its own code and attributes, which the config builds: only where the rows come from changes. So a
checkpoint says nothing of scales and offsets, and can't say anything wrong.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core.foreign_internals import parameters_of
from ..core.weight_reads import computes_through_base
from ..ops.codebooks import Codebook
from ..ops.quantization import Grid
from .storage import AUXILIARY, Packed


class PackedTable(Packed, nn.Embedding):  # type: ignore[misc,override]
    """Stands between such a class and nn.Embedding, and looks rows up in the packed weight in its place."""

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (…) to vectors (…, dim)."""
        return self.lookup(ids)


def has_own_lookup(module: nn.Module) -> bool:
    """Say whether a table, plain or packed, is of a class that computes through nn.Embedding's lookup."""
    return _extends(parametrize.type_before_parametrizations(module))


def packed_table(
    table: Any, grid: Grid | Codebook | None, nonzeros: int | None = None, dtype: torch.dtype | None = None
) -> PackedTable:
    """Return `table` with an empty packed weight in place of its own; all else of it is shared with the new one."""
    new: Any = _as(table, _packed_class(_plain_class(type(table))))
    for name in ("weight", *AUXILIARY):
        parameters_of(new).pop(name, None)
    new.hold(table.num_embeddings, table.embedding_dim, grid=grid, nonzeros=nonzeros, dtype=dtype or table.weight.dtype)
    return new


def widened_table(table: PackedTable, weight: nn.Parameter) -> nn.Module:
    """Return `table` as the plain class it was made of, with `weight`."""
    new = _as(table, _plain_class(type(table)))
    for name in (*AUXILIARY, "rows", "columns", "grid", "nonzeros", "input_bits", "_wide", "_starts"):
        parameters_of(new).pop(name, None)
        vars(new).pop(name, None)
    new.weight = weight
    return new


def _as(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """Return a module of the class `cls` with all that `module` holds."""
    new = cls.__new__(cls)
    vars(new).update({name: copy.copy(v) if isinstance(v, dict) else v for name, v in vars(module).items()})
    return new


@functools.cache
def _extends(cls: type) -> bool:
    if issubclass(cls, PackedTable):
        return True
    return issubclass(cls, nn.Embedding) and cls is not nn.Embedding and computes_through_base(cls)


@functools.cache
def _packed_class(cls: type) -> type[PackedTable]:
    return type(f"Packed{cls.__name__}", (cls, PackedTable), {"__module__": __name__, "__doc__": PackedTable.__doc__})


def _plain_class(cls: type) -> Any:
    return cls.__mro__[1] if issubclass(cls, PackedTable) else cls
