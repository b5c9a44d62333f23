"""One view of every layer that holds a weight: a matrix with one row per output channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from ..core.errors import TargetError
from .storage import Packed

LAYERS = (nn.Linear, Conv1D, nn.Conv2d, nn.Embedding)


def matrix(module: nn.Module) -> Tensor:
    """Return the layer's weight as (rows, columns): one row per output channel, or per entry of an embedding table.

    nn.Linear (out, in); Conv1D of GPT-2, which keeps (in, out), transposed; nn.Conv2d (out, in / groups * kernel size).
    A view where the layout allows: writing into it writes into the layer. TypeError for another kind of module,
    TargetError for a layer that is packed, and for one of a library that keeps codes where its class promises a weight.
    """
    if isinstance(module, Packed):
        raise TargetError(f"the weight of a {type(module).__name__} is packed already: do this before what packs it")
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, LAYERS) and not (weight.is_floating_point() or weight.is_meta):
        raise TargetError(f"the weight of a {type(module).__name__} is quantized already; dequantize the model first")
    return as_matrix(module, weight)


def as_matrix(module: nn.Module, tensor: Any) -> Tensor:
    """Return `tensor`, laid out like the layer's weight, as `matrix` returns the weight itself.

    Floats of a layer that keeps them without its zeros are put where they belong.
    """
    if isinstance(module, Packed):
        return tensor.new_zeros(module.rows, module.columns).masked_scatter(module.mask(), tensor)
    if isinstance(module, Conv1D):
        return tensor.T
    if isinstance(module, nn.Conv2d):
        return tensor.flatten(1)
    if isinstance(module, nn.Linear | nn.Embedding):
        return tensor
    raise TypeError(f"a {type(module).__name__} has no weight matrix")


def stored(module: nn.Module) -> Tensor:
    """Return the weight that the layer keeps; under training wrappers that is what the first of them reads."""
    found: Any = module.parametrizations["weight"].original if parametrize.is_parametrized(module) else module.weight  # type: ignore[index,union-attr]
    return found


@torch.no_grad()
def set_matrix_(module: nn.Module, values: Tensor) -> None:
    """Write `values` (rows, columns), shaped like `matrix(module)`, into the layer's stored weight, in its dtype.

    A layer that keeps floats without its zeros takes those that are not under its mask.
    """
    weight = stored(module)
    if isinstance(module, Packed):
        values = values[module.mask()]
    weight.copy_(values.T if isinstance(module, Conv1D) else values.reshape(weight.shape))
