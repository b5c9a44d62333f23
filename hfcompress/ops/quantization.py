"""Uniform quantization of weights."""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_DTYPE = torch.bfloat16  # 16 bits with the range of float32: rows of tiny weights keep their precision


def quantize_symmetric(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Return (codes, scale) with weight ≈ codes * scale[:, None], symmetric, one scale per row.

    weight: (rows, columns), any float dtype. codes: int8 (rows, columns) in [-(2^(bits-1)-1), 2^(bits-1)-1].
    scale: bfloat16 (rows,), chosen so that the largest magnitude of a row meets the last code; the codes are computed
    against the rounded scale, so its 16 bits cost no accuracy, and quantizing the result again changes nothing. A row
    of zeros gets scale 1.
    """
    last = 2 ** (bits - 1) - 1
    weight = weight.detach().float()
    scale = (weight.abs().amax(dim=1) / last).to(SCALE_DTYPE)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = torch.round(weight / scale.float()[:, None]).clamp(-last, last)
    return codes.to(torch.int8), scale


def dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return codes * scale[:, None] in `dtype`; codes (rows, columns), scale (rows,)."""
    return codes.to(dtype) * scale.to(dtype)[:, None]
