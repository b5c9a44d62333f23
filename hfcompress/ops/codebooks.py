"""Codebooks: every weight, or short vector of weights, is one of a few values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
