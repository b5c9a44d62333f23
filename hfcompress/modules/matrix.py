"""One view of every layer that holds a weight: a matrix with one row per output channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..core.errors import TargetError

LAYERS = (nn.Linear, Conv1D, nn.Conv2d, nn.Embedding)


def matrix(module: nn.Module) -> Tensor:
    """Return the layer's weight as (rows, columns): one row per output channel, or per entry of an embedding table.

    nn.Linear (out, in); Conv1D of GPT-2, which keeps (in, out), transposed; nn.Conv2d (out, in / groups * kernel size).
    A view where the layout allows: writing into it writes into the layer. TypeError for another kind of module,
    TargetError for a layer of a library that keeps codes where its class promises a weight.
    """
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, LAYERS) and not (weight.is_floating_point() or weight.is_meta):
        raise TargetError(f"the weight of a {type(module).__name__} is quantized already; dequantize the model first")
    if isinstance(module, Conv1D):
        return weight.T
    if isinstance(module, nn.Conv2d):
        return weight.flatten(1)
    if isinstance(module, nn.Linear | nn.Embedding):
        return weight
    raise TypeError(f"a {type(module).__name__} has no weight matrix")


@torch.no_grad()
def set_matrix_(module: nn.Module, values: Tensor) -> None:
    """Write `values` (rows, columns), shaped like `matrix(module)`, into the layer's weight, in its dtype."""
    weight: Any = module.weight
    weight.copy_(values.T if isinstance(module, Conv1D) else values.reshape(weight.shape))
