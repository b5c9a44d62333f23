"""The weights of a model as an export stores them: plain numbers, or the codes and scales of a packed layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..modules.matrix import matrix
from ..modules.packed import PackedConv2d, PackedEmbedding
from ..modules.storage import Packed
from ..ops.codebooks import Codebook
from ..ops.quantization import Grid, Quantized, quantize, stored_width

Array = np.ndarray

SMALL = 1024  # numbers; a plain weight of fewer is not worth quantizing for an int8 export
TERNARY = 0  # "bits" of a code stored as a digit of base 3, five to a byte


@dataclass(frozen=True)
class Dense:
    """A weight in float32, (rows, columns): one row per output channel or table entry.

    mask: bool, where the numbers that are stored are; None: all are.
    """

    values: Array
    mask: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.values.shape


@dataclass(frozen=True)
class Coded:
    """W[r, c] = (codes[r, c] - zero[r, g]) * scale[r, g], where g = c // group_size.

    codes: int8 (rows, columns), each `low` + `step` * u with u in [0, 2^bits), or of base 3. scale: float32 (rows,
    groups), its values bfloat16. zero: int8 (rows, groups), or None for zero throughout. mask: as of `Dense`; a code
    that is not stored is the zero point.
    """

    codes: Array
    scale: Array
    zero: Array | None
    bits: int
    step: int = 1  # 2 for codes that are -1 or 1
    group_size: int | None = None
    mask: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.codes.shape

    @property
    def groups(self) -> int:
        """How many scales a row has."""
        return int(self.scale.shape[1])

    @property
    def low(self) -> int:
        """The lowest code."""
        return -1 if self.step == 2 or self.bits == TERNARY else -(2 ** (self.bits - 1))

    def widened(self) -> Array:
        """Return W, float32 (rows, columns)."""
        size = self.group_size if self.groups > 1 and self.group_size else self.shape[1]
        columns = np.arange(self.shape[1]) // size
        codes = self.codes.astype(np.float32)
        codes = codes if self.zero is None else codes - self.zero[:, columns]
        return codes * self.scale[:, columns]

    def stored(self) -> Array:
        """Return u of the codes that are stored as uint8: (rows, columns), or (1, count) under a mask."""
        codes = self.codes if self.mask is None else self.codes[self.mask][None]
        return ((codes.astype(np.int16) - self.low) // self.step).astype(np.uint8)


@dataclass(frozen=True)
class Worded:
    """Codewords: W[r, d*c : d*(c+1)] = words[block(r, c), codes[r, c]], d = dim, blocks counted row by row.

    codes: uint8 (rows, columns / dim), below 2^bits. words: (blocks, 2^bits, dim), float32 whose values are bfloat16,
    or int8 to be multiplied by `scale` (rows, 1). high, wide: rows and columns of a block. mask: as of `Dense`.
    """

    codes: Array
    words: Array
    bits: int
    high: int
    wide: int
    mask: Array | None = None
    scale: Array | None = None
    zero: None = None
    step: int = 1
    low: int = 0
    groups: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.codes.shape[0], self.codes.shape[1] * self.dim

    @property
    def dim(self) -> int:
        """Columns that a code stands for."""
        return int(self.words.shape[2])

    @property
    def across(self) -> int:
        """Blocks side by side."""
        return -(-self.shape[1] // self.wide)

    def stored(self) -> Array:
        """Return the codes that are stored: (rows, columns / dim), or (1, count) under a mask."""
        return self.codes if self.mask is None else self.codes[self.mask][None]

    def rounded8(self, last: int) -> Worded:
        """Return the same with words in [-last, last] and a scale per row; for one block across only."""
        largest = np.abs(self.words).max((1, 2))
        scale = np.where(largest > 0, largest, 1) / last
        words = np.rint(self.words / scale[:, None, None]).astype(np.int8)
        by_row = np.repeat(scale, self.high)[: len(self.codes), None].astype(np.float32)
        return replace(self, words=words, scale=by_row)


Weight = Dense | Coded | Worded


@dataclass(frozen=True)
class Inputs:
    """The grid a layer rounds what it reads to: (code - zero) * step, code in [0, 2^bits)."""

    step: float
    zero: int
    bits: int

    @property
    def span(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return -self.zero * self.step, (2**self.bits - 1 - self.zero) * self.step


@dataclass(frozen=True)
class Convolution:
    """How a kernel moves over its input (batch, in, height, width), and what became part of it.

    shape: (out, in / groups, height, width). pads: zeros above and left, then below and right. bound: what its output
    is clipped to. last: path of the module whose output is the layer's; "" for the layer itself.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    bound: tuple[float, float] | None = None
    last: str = ""


@dataclass(frozen=True)
class Layer:
    """A layer an export writes itself; layers that share one weight carry the same `name`."""

    path: str
    name: str
    is_table: bool
    weight: Weight
    bias: Array | None = None
    inputs: Inputs | None = None  # None: it reads floats
    convolution: Convolution | None = None  # None: a product, or a table
    outputs: Inputs | None = None  # the grid its output is rounded to; None: none


def layer_of(path: str, name: str, module: nn.Module) -> Layer | None:
    """Return the layer an export writes for `module`, or None when the exporter's own translation is right."""
    weight: Weight
    convolution = convolution_of(module)
    if isinstance(module, Packed):
        weight = _packed(module)
    elif type(module) in (nn.Linear, nn.Embedding, Conv1D) or convolution is not None:
        weight = Dense(matrix(module).detach().float().cpu().contiguous().numpy())
    else:
        return None
    table = isinstance(module, nn.Embedding | PackedEmbedding)
    bias = getattr(module, "bias", None)
    bias = None if bias is None else bias.detach().float().cpu().numpy()
    return Layer(path, name, table, weight, bias, _inputs(module), convolution)


def convolution_of(module: nn.Module) -> Convolution | None:
    """Return how a plain or packed convolution moves over its input; None for any other module."""
    if type(module) is not nn.Conv2d and not isinstance(module, PackedConv2d):
        return None
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return None
    known: Any = module
    shape = (known.out_channels, known.in_channels // known.groups, *known.kernel_size)
    return Convolution(shape, tuple(known.stride), _pads(known), tuple(known.dilation), known.groups)


def _pads(module: Any) -> tuple[int, ...]:
    """Return the rows and columns of zeros, all at the start of an axis before all at its end."""
    if module.padding == "valid":
        return (0, 0, 0, 0)
    if module.padding != "same":
        return (*module.padding, *module.padding)
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return (*(t // 2 for t in total), *(t - t // 2 for t in total))


def coded8(values: Array) -> Coded:
    """Quantize a plain weight (rows, columns) to 8 bits, symmetric, one scale per row."""
    return _coded(quantize(torch.from_numpy(values), Grid(8)))


def coded4(values: Array, group_size: int) -> Coded:
    """Quantize a plain weight (rows, columns) to 4 bits, a scale and a zero point per `group_size` columns."""
    return _coded(quantize(torch.from_numpy(values), Grid(4, symmetric=False, group_size=group_size)))


def halved(weight: Coded) -> Coded:
    """Return 8-bit codes on a grid twice as coarse, in [-64, 64]: the sum of two products then fits 16 bits."""
    if weight.bits < 8:
        return weight
    zero = np.zeros((1, 1)) if weight.zero is None else np.rint(weight.zero / 2)
    kept = np.zeros((1, 1)) if weight.zero is None else weight.zero
    codes = np.rint((weight.codes - kept.astype(np.float32)) / 2) + zero
    whole = None if weight.zero is None else zero.astype(np.int8)
    return Coded(codes.clip(-64, 64).astype(np.int8), weight.scale * 2, whole, 8, mask=weight.mask)


def _inputs(module: nn.Module) -> Inputs | None:
    grid = module.inputs() if isinstance(module, Packed) else None
    return None if grid is None else Inputs(float(grid[0]), grid[1], grid[2])


def _packed(module: Packed) -> Weight:
    mask = module.mask().cpu().numpy() if module.sparse else None
    if isinstance(module.grid, Codebook):
        found, book = module.clustered(), module.grid
        high, wide = book.rows or module.rows, book.columns or module.columns
        return Worded(found.codes.cpu().numpy(), found.words.float().cpu().numpy(), book.bits, high, wide, mask)
    if module.grid is None:
        return Dense(module.dequantized().detach().cpu().numpy(), mask)
    return _coded(module.quantized(), mask)


def _coded(quantized: Quantized, mask: Array | None = None) -> Coded:
    """Shift codes of 0 and more to around zero, so that every code is an int8."""
    grid = quantized.grid
    width: Any = stored_width(grid, mask is not None)
    shift = 0 if grid.symmetric else 2 ** (width - 1)
    codes = (quantized.codes.cpu().numpy().astype(np.int16) - shift).astype(np.int8)
    scale, zero = (None if t is None else t.cpu().float().numpy() for t in (quantized.scale, quantized.zero))
    return Coded(
        codes,
        _by_row(scale, len(codes)),
        None if zero is None else _by_row(zero - shift, len(codes)).astype(np.int8),
        TERNARY if width == "ternary" else width,
        2 if width == 1 else 1,
        grid.group_size,
        mask,
    )


def _by_row(values: Any, rows: int) -> Array:
    return np.broadcast_to(values, (rows, values.shape[1]))
