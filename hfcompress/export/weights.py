"""The weights of a model as an export stores them: plain numbers, or the codes and scales of a packed layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..modules.matrix import matrix
from ..modules.packed import PackedEmbedding, PackedLinear
from ..ops.quantization import SCALE_DTYPE, quantize_symmetric

Array = np.ndarray

SMALL = 1024  # numbers; a plain weight of fewer is not worth quantizing for an int8 export


@dataclass(frozen=True)
class Dense:
    """A weight in float32, (rows, columns): one row per output channel or table entry."""

    values: Array

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.values.shape


@dataclass(frozen=True)
class Coded:
    """W[r, c] = (codes[r, c] - zero[r, g]) * scale[r, g], where g = c // (columns / groups).

    codes: int8 (rows, columns), each `low` + `step` * u with u in [0, 2^bits); scale: float32 (rows, groups); zero:
    int8 (rows, groups) or None for zero throughout.
    """

    codes: Array
    scale: Array
    zero: Array | None
    bits: int
    step: int = 1  # 2 for codes that are -1 or 1

    @property
    def low(self) -> int:
        """The lowest code."""
        return -1 if self.step == 2 else -(2 ** (self.bits - 1))

    def unsigned(self) -> Array:
        """Return u as uint8 (rows, columns)."""
        return ((self.codes.astype(np.int16) - self.low) // self.step).astype(np.uint8)

    @property
    def groups(self) -> int:
        """How many scales a row has."""
        return int(self.scale.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.codes.shape


@dataclass(frozen=True)
class Layer:
    """A layer an export writes itself; layers that share one weight carry the same `name`."""

    path: str
    name: str
    is_table: bool
    weight: Dense | Coded
    bias: Array | None = None


def is_packed(module: nn.Module) -> bool:
    """Say whether the module stores its weight as codes."""
    return isinstance(module, PackedLinear | PackedEmbedding)


def layer_of(path: str, name: str, module: nn.Module) -> Layer | None:
    """Return the layer an export writes for `module`, or None when the exporter's own translation is right."""
    table = isinstance(module, nn.Embedding | PackedEmbedding)
    if is_packed(module):
        weight: Dense | Coded = _coded(module)
    elif type(module) in (nn.Linear, nn.Embedding, Conv1D):
        weight = Dense(matrix(module).detach().float().cpu().contiguous().numpy())
    else:
        return None
    bias = getattr(module, "bias", None)
    return Layer(path, name, table, weight, None if bias is None else bias.detach().float().cpu().numpy())


def coded8(values: Array) -> Coded:
    """Quantize a plain weight (rows, columns) to 8 bits, symmetric, one scale per row."""
    codes, scale = quantize_symmetric(torch.from_numpy(values))
    return Coded(codes.numpy(), scale.float().numpy()[:, None], None, 8)


def halved(weight: Coded) -> Coded:
    """Return 8-bit codes on a grid twice as coarse, in [-64, 64]: the sum of two products then fits 16 bits."""
    if weight.bits < 8:
        return weight
    zero = np.zeros((1, 1)) if weight.zero is None else np.rint(weight.zero / 2)
    kept = np.zeros((1, 1)) if weight.zero is None else weight.zero
    codes = np.rint((weight.codes - kept.astype(np.float32)) / 2) + zero
    return Coded(
        codes.clip(-64, 64).astype(np.int8),
        weight.scale * 2,
        None if weight.zero is None else zero.astype(np.int8),
        weight.bits,
    )


def _coded(module: Any) -> Coded:
    scale = module.weight_scale.view(SCALE_DTYPE).float().cpu().numpy()[:, None]
    return Coded(module.codes().cpu().numpy(), scale, None, 8)
