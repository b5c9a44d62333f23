"""Floating-point operations of one example."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..export.plain import plain_copy


def count_flops(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Return the operations (a multiply-add is two) of a forward pass per example of `inputs`; `model` stays as it is.

    Packed layers count as the dense ones they stand for: the count is of the network, not of an engine's kernels.
    """
    plain = plain_copy(model)
    batch = next(iter(inputs.values())).shape[0]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(**inputs)
    return counter.get_total_flops() // batch
