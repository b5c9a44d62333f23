"""Codebooks: every weight, or short vector of weights, is the nearest of a few values found by k-means."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .kmeans import Init, kmeans_lines, kmeans_vectors, nearest_line, nearest_vectors
from .quantization import SCALE_DTYPE

_PART = 2**23  # weights clustered at once


@dataclass(frozen=True)
class Codebook:
    """2^`bits` codewords of `dim` neighbouring columns; blocks of `rows` rows and `columns` columns have their own.

    None: all rows, or all columns, share one. ValueError for what does not fit together.
    """

    bits: int = 4
    dim: int = 1
    rows: int | None = None
    columns: int | None = None

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 1 <= self.bits <= 8:
            raise ValueError(f"bits={self.bits!r} of a codebook is not between 1 and 8")
        for name in ("dim", "rows", "columns"):
            value = getattr(self, name)
            if (name == "dim" or value is not None) and (type(value) is not int or value < 1):
                raise ValueError(f"{name}={value!r} of a codebook is not a number of at least 1")
        if self.columns is not None and self.columns % self.dim:
            raise ValueError(f"blocks of {self.columns} columns are no multiple of dim={self.dim}")

    @property
    def has_zero(self) -> bool:
        """Say whether a weight of zero stays zero: only where it is left out under a mask."""
        return False

    def shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many blocks a (rows, columns) weight has, down and across."""
        return math.ceil(rows / (self.rows or rows)), math.ceil(columns / (self.columns or columns))

    def numel(self, rows: int, columns: int) -> int:
        """Return how many numbers the codebooks of a (rows, columns) weight hold."""
        return math.prod(self.shape(rows, columns)) * 2**self.bits * self.dim

    def fits(self, columns: int) -> bool:
        """Say whether a row comes out even in vectors."""
        return columns % self.dim == 0

    def blocks(self, rows: Tensor, total_rows: int, columns: int) -> Tensor:
        """Return the number of the block that each vector of the rows `rows` (n,) is in, int64 (n, columns / dim)."""
        across = self.shape(total_rows, columns)[1]
        column = torch.arange(columns // self.dim, device=rows.device) * self.dim // (self.columns or columns)
        return (rows // (self.rows or total_rows))[:, None] * across + column


@dataclass(frozen=True)
class Clustered:
    """A weight by its codebooks.

    codes: uint8 (rows, columns / dim). words: bfloat16 (blocks, 2^bits, dim), blocks counted row by row.
    """

    codes: Tensor
    words: Tensor
    book: Codebook

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight, (rows, columns), in `dtype`."""
        rows = torch.arange(len(self.codes), device=self.codes.device)
        return gather(self.codes, self.words, self.book, rows, len(rows), dtype)


def gather(codes: Tensor, words: Tensor, book: Codebook, rows: Tensor, total: int, dtype: torch.dtype) -> Tensor:
    """Return the rows `rows` (n,), of `total`, whose codes (n, columns / dim) are given: (n, columns) in `dtype`."""
    columns = codes.shape[1] * book.dim
    flat = words.to(dtype).view(-1, book.dim)
    at = codes.to(torch.int32)
    if len(words) > 1:
        at = at + (book.blocks(rows, total, columns) * 2**book.bits).to(torch.int32)
    found = flat.view(-1)[at] if book.dim == 1 else F.embedding(at, flat)
    return found.reshape(len(codes), columns)


@torch.no_grad()
def cluster(
    weight: Tensor, book: Codebook, importance: Tensor | None = None, *, init: Init = "linear", seed: int = 0
) -> Clustered:
    """Return `weight` (rows, columns) on codebooks that k-means fits to it.

    `importance` (rows, columns), at least 0, weighs the squared error of every weight; where it is 0 in a whole block
    any codeword may stand. Scalars: exact Lloyd iterations on sorted values; vectors: Lloyd iterations from k-means++.
    """
    rows, columns = weight.shape
    if not book.fits(columns):
        raise ValueError(f"{columns} columns are no multiple of dim={book.dim}")
    values = _in_blocks(weight.detach().float(), book)
    weights = None if importance is None else _in_blocks(importance.float(), book)
    if weights is None and values.shape[1] * len(values) != rows * columns // book.dim:
        weights = _in_blocks(torch.ones_like(weight, dtype=torch.float32), book)  # 0 where a block is padded
    step = max(1, _PART // (values.shape[1] * book.dim))
    fitted = []
    for start in range(0, len(values), step):
        part = values[start : start + step]
        heavy = None if weights is None else weights[start : start + step]
        fitted.append(_fit(part, heavy, 2**book.bits, init, seed + start))
    words = torch.cat(fitted).to(SCALE_DTYPE)
    return Clustered(encode(weight, words, book), words, book)


def encode(weight: Tensor, words: Tensor, book: Codebook) -> Tensor:
    """Return the codes, uint8 (rows, columns / dim), of the codewords (blocks, 2^bits, dim) nearest to `weight`."""
    rows, columns = weight.shape
    blocks = _in_blocks(weight.detach().float(), book)
    assign = nearest_line if book.dim == 1 else nearest_vectors
    codes = torch.cat([assign(v[None], w[None].float()) for v, w in zip(blocks, words, strict=True)])
    return _from_blocks(codes, book, rows, columns // book.dim)


def _fit(values: Tensor, weights: Tensor | None, count: int, init: Init, seed: int) -> Tensor:
    generator = torch.Generator(values.device).manual_seed(seed)
    if values.shape[2] == 1:
        lines = None if weights is None else weights[:, :, 0]
        return kmeans_lines(values[:, :, 0], count, lines, init=init, generator=generator)[:, :, None]
    fitted = []
    for i, points in enumerate(values):
        heavy = torch.ones_like(points[:, 0]) if weights is None else weights[i].mean(1)
        fitted.append(kmeans_vectors(points, count, heavy, generator=generator))
    return torch.stack(fitted)


def _in_blocks(values: Tensor, book: Codebook) -> Tensor:
    """Return (blocks, vectors in one, dim), padded with zeros."""
    rows, columns = values.shape
    high, wide = book.rows or rows, book.columns or columns
    down, across = book.shape(rows, columns)
    padded = F.pad(values, (0, across * wide - columns, 0, down * high - rows))
    parts = padded.view(down, high, across, wide // book.dim, book.dim).transpose(1, 2)
    return parts.reshape(down * across, high * (wide // book.dim), book.dim)


def _from_blocks(codes: Tensor, book: Codebook, rows: int, width: int) -> Tensor:
    high, wide = book.rows or rows, (book.columns or width * book.dim) // book.dim
    down, across = math.ceil(rows / high), math.ceil(width / wide)
    whole = codes.view(down, across, high, wide).transpose(1, 2).reshape(down * high, across * wide)
    return whole[:rows, :width].contiguous()
