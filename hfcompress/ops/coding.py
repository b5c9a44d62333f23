"""Entropy coding of tensors, exact to the bit: byte planes and packed codes through zstd's Huffman coder.

A symbol is a byte: two 4-bit codes, eight bits of a mask, or one byte of each number where numbers have several
(Hershcovitch 2024, section 3), so that a sign and exponent is coded by those of its neighbours.
"""

from __future__ import annotations

import math

import torch
import zstandard
from torch import Tensor

from .packing import pack, packed_size, unpack

_LEVEL = 1  # higher ones search longer for repetitions, of which weights have none


def encode(tensor: Tensor, bits: int | None = None) -> Tensor:
    """Return `tensor`, of any dtype, as a coded stream, uint8 (bytes,).

    bits: the tensor is a stream of numbers of so many bits, as `pack` makes; ones that straddle bytes are coded apart.
    """
    planes = _symbols(tensor, bits) if _straddles(bits) else _planes(tensor)
    coded = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(planes.numpy().tobytes())
    return torch.frombuffer(bytearray(coded), dtype=torch.uint8)


def decode(stream: Tensor, shape: torch.Size, dtype: torch.dtype, bits: int | None = None) -> Tensor:
    """Return the tensor of this shape and dtype that `encode` was given, on the CPU.

    Raises ValueError for a stream that is damaged or of another tensor; never allocates more than the tensor takes.
    """
    size = shape.numel() * dtype.itemsize
    count = math.ceil(8 * size // _width(bits) / _each(bits)) if _straddles(bits) else size
    data = stream.cpu().numpy().tobytes()
    try:
        if zstandard.get_frame_parameters(data).content_size != count:
            raise ValueError("it holds another number of bytes")
        plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=count, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"it is damaged: {error}") from error
    planes = torch.frombuffer(bytearray(plain), dtype=torch.uint8) if plain else torch.empty(0, dtype=torch.uint8)
    if _straddles(bits):
        return _packed(planes, size, _width(bits)).view(dtype).view(shape)
    return planes.view(dtype.itemsize, -1).T.contiguous().flatten().view(dtype).view(shape)


def _planes(tensor: Tensor) -> Tensor:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).view(-1, flat.element_size()).T.contiguous()


def _symbols(tensor: Tensor, bits: int | None) -> Tensor:
    """Return the codes of a stream, as many to a byte as fit whole."""
    width, each = _width(bits), _each(bits)
    data = tensor.detach().cpu().view(torch.uint8).flatten()
    codes = unpack(data, width, 8 * len(data) // width)
    if each == 1:
        return codes
    pairs = torch.nn.functional.pad(codes, (0, len(codes) % 2)).view(-1, 2)
    return pairs[:, 0] | pairs[:, 1] << width


def _packed(symbols: Tensor, size: int, width: int) -> Tensor:
    """Return the stream of `size` bytes whose codes these are."""
    count = 8 * size // width
    if _each(width) == 2:
        symbols = torch.stack([symbols & (2**width - 1), symbols >> width], dim=1).flatten()
    return pack(symbols[:count] & (2**width - 1), width)[: packed_size(count, width)]


def _straddles(bits: int | None) -> bool:
    return bits is not None and bool(8 % bits)


def _width(bits: int | None) -> int:
    return bits or 8


def _each(bits: int | None) -> int:
    """How many codes that straddle bytes fit one."""
    return 8 // _width(bits)
