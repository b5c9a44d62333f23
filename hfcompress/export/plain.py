"""A float copy of a model, for whatever cannot read packed weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode and float32 with ordinary layers and eager attention; `model` stays as it is.

    Eager attention is spelt in matrix products, which exporters and FLOP counters see on every device.
    """
    plain = copy.deepcopy(model).eval()
    if not any(p.is_meta for p in plain.parameters()):
        plain = plain.cpu()
    if any(not p.is_floating_point() for p in plain.parameters()):
        from ..checkpoint.loader import mark_trainable_
        from ..modules.bnb import widen_bnb_
        from ..modules.packed import dequantize_

        plain = dequantize_(widen_bnb_(plain))
        mark_trainable_(plain)  # transformers refuses to cast a model it takes for a quantized one
    plain = plain.to(torch.float32).requires_grad_(False).eval()
    if hasattr(plain.config, "use_cache"):
        plain.config.use_cache = False  # a decoder's keys and values are no output here
    plain.set_attn_implementation("eager")  # type: ignore[operator]
    return plain
