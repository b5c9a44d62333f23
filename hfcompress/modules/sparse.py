"""Zeros that leave the file: a layer's values and one bit per weight that says where they belong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.families import direct_weights
from ..ops.codebooks import Codebook
from ..ops.packing import packed_size
from ..ops.quantization import Grid, spread, stored_width
from .packable import obstacle
from .packed import form_of, packed_like, replace_, weight_matrix
from .storage import Packed
from .ties import sharers

_OVERHEAD = 256  # bytes in the file's header and the config for one more tensor and its description


@torch.no_grad()
def pack_sparse_(model: nn.Module, path: str) -> bool:
    """Store the layer at `path` without its zeros, in place, if that makes the file smaller; say whether it does.

    A float layer pays one bit per weight, so that float32 gains from 3% zeros on and int8 codes from 12.5%; values are
    kept to the bit, and stay trainable if they are floats. Layers tied to it follow. Raises TargetError as `pack_`.
    """
    module = model.get_submodule(path)
    group = sharers(model, path)
    if isinstance(module, Packed) and module.sparse:
        return False
    direct = direct_weights(model)
    if any(obstacle(where, each, direct) for where, each in group):
        return False
    new = _sparse(module)
    if new is None:
        return False
    replace_(model, group, new)
    return True


def _sparse(module: nn.Module) -> Packed | None:
    """Return the sparse form of a layer, or None when it would not be smaller."""
    weight: Any = module.weight
    grid = module.grid if isinstance(module, Packed) else None
    # Without values, in a plan, nothing is known to be zero.
    if weight.is_meta or form_of(module) is None or isinstance(grid, Codebook) or (grid and not grid.has_zero):
        return None  # the mask of a codebook's layer is made with it
    mask = _nonzero(module)
    count = int(mask.count_nonzero())  # a sum of booleans would first make int64 of them all
    if count == 0:  # a tensor in a file has at least one element
        mask.view(-1)[0], count = True, 1
        if grid is not None and stored_width(grid, sparse=True) == 1:
            return None
    sparse = _bytes(weight.dtype, grid, count, sparse=True) + packed_size(mask.numel(), 1) + _OVERHEAD
    if sparse >= _bytes(weight.dtype, grid, mask.numel(), sparse=False):
        return None
    new = packed_like(module, grid, count)
    new.set_mask(mask)
    if isinstance(module, Packed):
        new.set_quantized(module.quantized())
    else:
        new.set_weight(weight_matrix(module))
        new.weight.requires_grad_(weight.requires_grad)
    return new


def _nonzero(module: nn.Module) -> Tensor:
    """Return where (rows, columns) the weight is not zero."""
    if not isinstance(module, Packed):
        return weight_matrix(module) != 0
    stored = module.quantized()
    return stored.codes != (0 if stored.zero is None else spread(stored.zero, module.columns, stored.grid))


def _bytes(dtype: torch.dtype, grid: Grid | None, count: int, *, sparse: bool) -> int:
    return count * dtype.itemsize if grid is None else packed_size(count, stored_width(grid, sparse))
