"""Weights put on a codebook: the values are found by k-means, and each weight becomes the nearest."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .codebooks import Clustered, Codebook
from .kmeans import Init, kmeans_lines, kmeans_vectors, nearest_line, nearest_vectors
from .quantization import SCALE_DTYPE

_PART = 2**23  # weights clustered at once


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
