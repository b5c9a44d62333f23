"""Uniform quantization of weights: a grid per row, per group of columns or per tensor, and the codes on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .packing import Width, pack, unpack, unpack_at

SCALE_DTYPE = torch.bfloat16  # 16 bits with the range of float32: rows of tiny weights keep their precision
TERNARY: Literal["ternary"] = "ternary"
Bits = Literal[8, 6, 4, 3, 2, 1, "ternary"]
Clip = Literal["max", "mse"]
_BITS = (8, 6, 4, 3, 2, 1)
_SHRINK = [1 - step / 64 for step in range(1, 53)]  # of the largest magnitude; three levels are best near 0.3 of it
_TINY = 2.0**-120  # a scale below this is one of zeros: nothing is left of its precision
_CHUNK = 2**18  # weights fitted at once: what a cache holds
_PART = 2**22  # weights held in float32 at once


@dataclass(frozen=True)
class Grid:
    """The values a weight may take: scale * code, or scale * (code - zero point).

    bits: 8, 6, 4, 3 or 2; 1 is binary, ±scale; "ternary" is {-scale, 0, scale}. group_size: columns that share a scale
    (the last group of a row may be shorter; None: the whole row does). per_tensor: all rows share one. ValueError for
    what does not fit together.
    """

    bits: Bits = 8
    symmetric: bool = True
    group_size: int | None = None
    per_tensor: bool = False

    def __post_init__(self) -> None:
        if self.bits != TERNARY and (type(self.bits) is not int or self.bits not in _BITS):
            raise ValueError(f"bits={self.bits!r} is none of {', '.join(map(str, _BITS))} and 'ternary'")
        if type(self.symmetric) is not bool or type(self.per_tensor) is not bool:
            raise ValueError("symmetric and per_tensor are true or false")
        if self.bits in (1, TERNARY) and not self.symmetric:
            raise ValueError("binary and ternary weights are symmetric: they have no zero point")
        if self.group_size is not None and (type(self.group_size) is not int or self.group_size < 1):
            raise ValueError(f"group_size={self.group_size!r} is not a number of columns")
        if self.per_tensor and self.group_size is not None:
            raise ValueError("one scale per tensor leaves no groups: set per_tensor or group_size, not both")

    @property
    def last(self) -> int:
        """The largest code; the smallest is its negative, or 0 when there is a zero point."""
        if self.bits == TERNARY or self.bits == 1:
            return 1
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    @property
    def has_zero(self) -> bool:
        """Say whether a weight of zero stays zero; only binary weights can't."""
        return self.bits != 1

    def shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many scales a (rows, columns) weight has, as (rows, groups)."""
        return (1, 1) if self.per_tensor else (rows, math.ceil(columns / (self.group_size or columns)))


@dataclass(frozen=True)
class Quantized:
    """A weight on its grid.

    codes: (rows, columns), int8 around zero, or uint8 when there are zero points. scale: bfloat16, zero: uint8 or None,
    both (rows, groups), or (1, 1) per tensor; with one group they also fit a part of the columns.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    grid: Grid

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight, (rows, columns), in `dtype`."""
        columns = self.codes.shape[1]
        codes = self.codes.to(dtype)
        if self.zero is not None:
            codes = codes - spread(self.zero, columns, self.grid).to(dtype)
        return codes * spread(self.scale, columns, self.grid).to(dtype)


def quantize(weight: Tensor, grid: Grid, clip: Clip = "max") -> Quantized:
    """Return `weight` (rows, columns), of any float dtype, on the grid that `fit` gives it.

    Quantizing the result again changes nothing. Done in parts of some rows, which do not depend on each other: a large
    vocabulary is never held in float32.
    """
    rows = len(weight) if grid.per_tensor else max(1, _PART // weight.shape[1])
    fits = [(part, *fit(part, grid, clip)) for part in weight.split(max(1, rows))]
    codes = torch.cat([encode(part, scale, zero, grid) for part, scale, zero in fits])
    zeros = [zero for _, _, zero in fits if zero is not None]
    scales = [scale for _, scale, _ in fits]
    return Quantized(codes, torch.cat(scales), torch.cat(zeros) if zeros else None, grid)


def fit(weight: Tensor, grid: Grid, clip: Clip = "max") -> tuple[Tensor, Tensor | None]:
    """Return (scale, zero) for `weight` (rows, columns), shaped as in `Quantized`.

    max: the grid spans all weights. mse: it spans the share of them, tried in steps, that leaves the smallest squared
    error, never a larger one than max. The 16 bits of a scale cost nothing, as codes are taken against the rounded one.
    Binary: scale = mean |w|, which is optimal (XNOR-Net, Rastegari 2016, eq. 6). Ternary: the mean of the weights above
    0.7 mean |w| (TWN, Li 2016, eq. 6), and with mse the exact optimum over thresholds. A group of zeros gets scale 1.
    """
    weight = weight.detach().float()
    if grid.per_tensor:
        weight = weight.reshape(1, -1)
    columns = weight.shape[1]
    size = grid.group_size or columns
    counts = torch.full((math.ceil(columns / size),), size, device=weight.device)
    counts[-1] = columns - size * (len(counts) - 1)
    padding = len(counts) * size - columns
    parts = [
        _fit(F.pad(part, (0, padding)).view(len(part), -1, size), counts, grid, clip)
        for part in weight.split(max(1, _CHUNK // columns))
    ]
    scale = torch.cat([s for s, _ in parts])
    return scale, None if grid.symmetric else torch.cat([z for _, z in parts if z is not None])


def encode(weight: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    """Return the codes (rows, columns) nearest to `weight`, which may be a part of the columns of one group."""
    columns = weight.shape[1]
    wide = None if zero is None else spread(zero, columns, grid)
    return _codes(weight.detach().float(), spread(scale, columns, grid).float(), wide, grid)


def spread(values: Tensor, columns: int, grid: Grid) -> Tensor:
    """Return scales or zero points (rows, groups) by column, (rows, columns), or as they are when one fits all."""
    if values.shape[1] == 1 or grid.group_size is None:
        return values
    return values.repeat_interleave(grid.group_size, dim=1)[:, :columns]


def stored_width(grid: Grid, sparse: bool = False) -> Width:
    """Return the bits of a stored code; where zeros are left out and only ±1 remain, the sign is one bit."""
    return 1 if sparse and grid.symmetric and grid.last == 1 else grid.bits


def pack_codes(codes: Tensor, grid: Grid, sparse: bool = False) -> Tensor:
    """Return codes (any shape) as they lie in a file: flat, in `stored_width` bits; symmetric 8 bits stay int8."""
    width = stored_width(grid, sparse)
    if width == 8:
        return codes.flatten().clone()
    if width == 1:
        return pack(codes > 0, 1)
    return pack(codes + grid.last if grid.symmetric else codes, width)


def unpack_codes(packed: Tensor, grid: Grid, where: int | Tensor, sparse: bool = False) -> Tensor:
    """Return the first `where` codes, or those at the positions `where` (int64, any shape), as in `Quantized`."""
    width = stored_width(grid, sparse)
    digits = unpack(packed, width, where) if isinstance(where, int) else unpack_at(packed, width, where)
    return signed(digits, grid, sparse)


def signed(digits: Tensor, grid: Grid, sparse: bool = False) -> Tensor:
    """Return codes as in `Quantized` of the digits they are stored as."""
    width = stored_width(grid, sparse)
    if width == 8 or not grid.symmetric:
        return digits
    return digits.to(torch.int8) * 2 - 1 if width == 1 else digits.to(torch.int8) - grid.last


def _codes(weight: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    if grid.bits == 1:
        return torch.where(weight >= 0, 1, -1).to(torch.int8)
    codes = torch.round(weight / scale)
    if zero is None:
        return codes.clamp_(-grid.last, grid.last).to(torch.int8)
    return codes.add_(zero).clamp_(0, grid.last).to(torch.uint8)


def _fit(weight: Tensor, counts: Tensor, grid: Grid, clip: Clip) -> tuple[Tensor, Tensor | None]:
    """Fit (rows, groups, size), padded with zeros; `counts` (groups,) says how many are real."""
    if grid.bits == 1:
        return (weight.abs().sum(-1) / counts).to(SCALE_DTYPE), None
    if grid.bits == TERNARY:
        scale = _ternary_optimum(weight) if clip == "mse" else _ternary(weight, counts)
        return _usable(scale), None
    low, high = weight.amin(-1).clamp(max=0), weight.amax(-1).clamp(min=0)
    scale, zero = _span(low, high, grid)
    if clip == "max":
        return scale, zero
    error = _error(weight, scale, zero, grid)
    for share in _SHRINK:
        other, other_zero = _span(low * share, high * share, grid)
        its_error = _error(weight, other, other_zero, grid)
        better = its_error < error
        error, scale = torch.where(better, its_error, error), torch.where(better, other, scale)
        if zero is not None and other_zero is not None:
            zero = torch.where(better, other_zero, zero)
    return scale, zero


def _span(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Return (scale, zero) of the grid from `low` <= 0 to `high` >= 0.

    With zero points, the scale is the largest 16-bit number (of the nearest and the two below) for which `low` meets
    the first code and `high` the last: then what lies on the grid finds its own scale again.
    """
    if grid.symmetric:
        return _usable(torch.maximum(-low, high) / grid.last), None
    nearest = _usable((high - low) / grid.last)
    scale, zero = nearest, torch.zeros_like(nearest, dtype=torch.uint8)
    open_ = torch.ones_like(nearest, dtype=torch.bool)
    for below in range(3):
        tried = (nearest.view(torch.int16) - below).view(SCALE_DTYPE)
        offset = torch.round(-low / tried.float()).clamp(0, grid.last)
        scale, zero = torch.where(open_, tried, scale), torch.where(open_, offset.to(torch.uint8), zero)
        open_ = open_ & (torch.round(high / tried.float()) + offset < grid.last)
    flat = high == low  # nothing but zeros
    return torch.where(flat, nearest, scale), torch.where(flat, 0, zero)


def _error(weight: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    wide, offset = scale.float()[..., None], None if zero is None else zero[..., None]
    codes = _codes(weight, wide, offset, grid).float()
    return ((codes if offset is None else codes - offset) * wide - weight).square_().sum(-1)


def _ternary(weight: Tensor, counts: Tensor) -> Tensor:
    size = weight.abs()
    above = size > 0.7 * (size.sum(-1) / counts)[..., None]
    return (size * above).sum(-1) / above.sum(-1).clamp(min=1)


def _ternary_optimum(weight: Tensor) -> Tensor:
    """Return the scale with the smallest squared error: the mean of the k largest, k with the largest (Σ|w|)²/k."""
    total = weight.abs().sort(dim=-1, descending=True).values.double().cumsum(-1)
    k = torch.arange(1, weight.shape[-1] + 1, device=weight.device)
    best = (total.square() / k).argmax(-1, keepdim=True)
    return (total.gather(-1, best) / (best + 1)).squeeze(-1).float()


def _usable(scale: Tensor) -> Tensor:
    scale = scale.to(SCALE_DTYPE)
    return torch.where(scale < _TINY, torch.ones_like(scale), scale)
