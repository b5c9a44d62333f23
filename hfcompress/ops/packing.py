"""Small whole numbers stored without a wasted bit: a stream of 1 to 8 bits each, or five ternary digits to a byte."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Width = int | Literal["ternary"]  # bits of one number, or a digit of base 3 (1.6 bits)
_TRITS = 5  # 3^5 = 243 fit a byte


def packed_size(count: int, width: Width) -> int:
    """Return the bytes that `count` numbers take: bits * count / 8, or count / 5 ternary, rounded up once."""
    return math.ceil(count / _TRITS) if width == "ternary" else math.ceil(count * width / 8)


def pack(digits: Tensor, width: Width) -> Tensor:
    """Return `digits` (any shape, each below 2^width, or below 3) as uint8 (packed_size,), least significant first."""
    period, size = _period(width)
    flat = digits.flatten()
    count = flat.numel()
    words = torch.zeros(math.ceil(count / period), period, dtype=torch.uint8, device=digits.device)
    words.view(-1)[:count] = flat
    if width == "ternary":
        return (words * _powers(words)).sum(1, dtype=torch.int32).to(torch.uint8)
    word = sum(
        (words[:, i].int() << (i * width) for i in range(period)), torch.zeros_like(words[:, 0], dtype=torch.int)
    )
    packed = torch.stack([(word >> (8 * j)) & 255 for j in range(size)], dim=1).to(torch.uint8)
    return packed.view(-1)[: packed_size(count, width)].clone()


def unpack(packed: Tensor, width: Width, count: int) -> Tensor:
    """Return the first `count` numbers of `packed` (bytes,) as uint8 (count,)."""
    if width == 8:
        return packed[:count]
    if width == "ternary":
        return _trits(packed.device)[packed.int()].view(-1)[:count]
    period, size = _period(width)
    words = torch.nn.functional.pad(packed, (0, -len(packed) % size)).view(-1, size)
    word = torch.zeros(len(words), dtype=torch.int32, device=packed.device)
    for j in range(size):
        word |= words[:, j].int() << (8 * j)
    digits = torch.empty(len(words), period, dtype=torch.uint8, device=packed.device)
    for i in range(period):
        digits[:, i] = (word >> (i * width)) & (2**width - 1)
    return digits.view(-1)[:count]


def unpack_at(packed: Tensor, width: Width, index: Tensor) -> Tensor:
    """Return the numbers at the positions `index` (any shape, int64) of the stream, as uint8 of that shape."""
    if width == 8:
        return packed[index]
    if width == "ternary":
        return _trits(packed.device)[packed[index // _TRITS].int(), index % _TRITS]
    bit = index * width
    byte, shift = bit // 8, bit % 8
    word = packed[byte].int() | packed[(byte + 1).clamp(max=len(packed) - 1)].int() << 8
    return ((word >> shift) & (2**width - 1)).to(torch.uint8)


def _period(width: Width) -> tuple[int, int]:
    """Return after how many numbers, and how many bytes, a number starts a byte again."""
    if width == "ternary":
        return _TRITS, 1
    bits = math.lcm(width, 8)
    return bits // width, bits // 8


def _powers(like: Tensor) -> Tensor:
    return 3 ** torch.arange(_TRITS, device=like.device, dtype=torch.int32)


def _trits(device: torch.device) -> Tensor:
    """Return the five digits of every byte, (256, 5)."""
    byte = torch.arange(256, device=device, dtype=torch.int32)
    return (byte[:, None] // _powers(byte) % 3).to(torch.uint8)
