"""Floating-point operations of one example."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoint.memory import is_large, meta_copy
from ..core.errors import MeasureError
from ..export.plain import plain_copy


def count_flops(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Return the operations (a multiply-add is two) of a forward pass per example of `inputs`; `model` stays as it is.

    Packed layers count as the dense ones they stand for: the count is of the network, not of an engine's kernels.
    """
    large = is_large(model)
    plain = plain_copy(meta_copy(model) if large else model)  # operations depend on shapes alone
    batch = next(iter(inputs.values())).shape[0]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            plain(**({name: value.to("meta") for name, value in inputs.items()} if large else inputs))
    except (ValueError, TypeError, RuntimeError, IndexError, AttributeError, KeyError) as error:
        if large:
            raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        raise MeasureError(f"a {type(model).__name__} can't be run on {', '.join(inputs)} alone: {first}") from error
    return counter.get_total_flops() // batch
