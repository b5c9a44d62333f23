"""How a layer keeps its weight when not as a float matrix: codes of few bits, nonzero values under a mask, or both.

Codes are numbers on a uniform grid, or those of codewords in a codebook.

Beside the codes stands an empty float `weight`: models ask their layers for its dtype and device, transformers ties it
by name, and read by a loader that does not know the codes, its shape fits no layer, so that the load fails instead of
leaving a weight at random. Float values without their zeros are kept in `weight` itself, flat, to the same effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import CheckpointError
from ..core.foreign_internals import version_of
from ..ops.codebooks import Clustered, Codebook, gather
from ..ops.packing import Width, pack, packed_size, unpack, unpack_at
from ..ops.quantization import (
    SCALE_DTYPE,
    Clip,
    Grid,
    Quantized,
    pack_codes,
    quantize,
    signed,
    spread,
    stored_width,
    unpack_codes,
)

# What goes with `weight`, also where weights are tied.
AUXILIARY = ("weight_codes", "weight_scale", "weight_zero", "weight_words", "weight_mask")


class Packed(nn.Module):
    """A (rows, columns) weight on a grid or codebook, or of floats when that is None, its zeros left out if `nonzeros`.

    Codes are frozen and what is around them stays trainable; float values stay trainable where they are not zero.
    A scale's bits are kept as integers: casting a model, or loading it in another dtype, then never changes a weight,
    and the dtype of a model is that of its float parameters.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        grid: Grid | Codebook | None,
        nonzeros: int | None = None,
        input_bits: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hold(rows, columns, grid=grid, nonzeros=nonzeros, input_bits=input_bits, dtype=dtype)

    def hold(
        self,
        rows: int,
        columns: int,
        *,
        grid: Grid | Codebook | None,
        nonzeros: int | None = None,
        input_bits: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Make room for such a weight in a module that has none."""
        rows, columns = int(rows), int(columns)  # a config's arithmetic may leave numpy's kind
        self.rows, self.columns, self.grid, self.nonzeros = rows, columns, grid, nonzeros
        self.input_bits = input_bits
        if input_bits is not None:
            self.input_scale, self.input_zero = _frozen(1, torch.int16), _frozen(1, torch.uint8)
        count = rows * columns if nonzeros is None else nonzeros
        if grid is None:
            self.weight = nn.Parameter(torch.empty(count, dtype=dtype))
        else:
            self.weight = nn.Parameter(torch.empty(rows, 0, dtype=dtype), requires_grad=False)
            self._add_codes(grid, count)
        if self.sparse:
            self.weight_mask = _frozen(packed_size(rows * columns, 1), torch.uint8)
        self._wide: tuple[Any, Tensor] | None = None
        self._starts: tuple[Any, Tensor] | None = None

    @property
    def stands_for(self) -> str:
        """The class whose name targets may use for it: a pruned layer still holds floats, a quantized one is done."""
        return type(self).__name__.removeprefix("Packed" if self.grid is None else "")

    def _add_codes(self, grid: Grid | Codebook, count: int) -> None:
        if isinstance(grid, Codebook):
            self.weight_codes = _frozen(packed_size(count // grid.dim, grid.bits), torch.uint8)
            self.weight_words = _frozen(grid.numel(self.rows, self.columns), torch.int16)
            return
        width, scales = stored_width(grid, self.sparse), _product(grid.shape(self.rows, self.columns))
        kind = torch.int8 if width == 8 and grid.symmetric else torch.uint8
        self.weight_codes = _frozen(packed_size(count, width), kind)
        self.weight_scale = _frozen(scales, torch.int16)
        if not grid.symmetric:
            self.weight_zero = _frozen(packed_size(scales, grid.bits), torch.uint8)

    @property
    def sparse(self) -> bool:
        """Say whether zeros are left out."""
        return self.nonzeros is not None

    @property
    def packed_numel(self) -> dict[str, int]:
        """How many numbers of the model each parameter stands for."""
        values = "weight" if self.grid is None else "weight_codes"
        numel = {values: self.rows * self.columns, "weight_mask": 0}
        if isinstance(self.grid, Codebook):
            return numel | {"weight_words": self.grid.numel(self.rows, self.columns)}
        scales = 0 if self.grid is None else _product(self.grid.shape(self.rows, self.columns))
        return numel | {"weight_scale": scales, "weight_zero": scales}

    @property
    def packed_widths(self) -> dict[str, Width]:
        """How wide one number of each packed stream is."""
        if self.grid is None:
            return {}
        width = self.grid.bits if isinstance(self.grid, Codebook) else stored_width(self.grid, self.sparse)
        return {"weight_codes": width, "weight_zero": self.grid.bits}

    @property
    def packed_nonzeros(self) -> dict[str, int]:
        """How many of those are not zero."""
        count = int(self.dequantized().count_nonzero()) if self.nonzeros is None else self.nonzeros
        return self.packed_numel | {"weight" if self.grid is None else "weight_codes": count}

    @torch.no_grad()
    def set_weight(self, weight: Tensor, clip: Clip = "max") -> None:
        """Store `weight` (rows, columns), on the layer's grid if it has one; a codebook has to be found first."""
        if self.grid is None:
            self._store(weight=weight[self.mask()])
        elif isinstance(self.grid, Codebook):
            raise TypeError("a codebook is fitted by k-means: use set_clustered()")
        else:
            self.set_quantized(quantize(weight, self.grid, clip))

    @torch.no_grad()
    def set_quantized(self, quantized: Quantized) -> None:
        """Store a weight that is on the layer's grid already."""
        codes, grid = quantized.codes, quantized.grid
        stored = {"weight_codes": pack_codes(codes[self.mask()] if self.sparse else codes, grid, self.sparse)}
        stored["weight_scale"] = quantized.scale.flatten().view(torch.int16)
        if quantized.zero is not None:
            stored["weight_zero"] = pack(quantized.zero, grid.bits)
        self._store(**stored)

    @torch.no_grad()
    def set_clustered(self, clustered: Clustered) -> None:
        """Store a weight by its codes and codebooks; codes where the mask says zero do not count."""
        codes = clustered.codes[self.mask()] if self.sparse else clustered.codes
        words = clustered.words.flatten().view(torch.int16)
        self._store(weight_codes=pack(codes, clustered.book.bits), weight_words=words)

    def set_inputs(self, step: Tensor, zero: int, bits: int) -> None:
        """Let the layer round what it reads to (code - zero) * step, step (1,), with codes of `bits` bits."""
        self.input_bits = bits
        self.input_scale = nn.Parameter(step.detach().to(SCALE_DTYPE).view(torch.int16).clone(), requires_grad=False)
        self.input_zero = nn.Parameter(torch.tensor([zero], dtype=torch.uint8, device=step.device), requires_grad=False)

    def inputs(self) -> tuple[Tensor, int, int] | None:
        """Return (step, zero, bits) of the grid of the layer's inputs, as `set_inputs` takes them; None: floats."""
        if self.input_bits is None:
            return None
        return self.input_scale.view(SCALE_DTYPE).float(), int(self.input_zero), self.input_bits

    def rounded_inputs(self, x: Tensor) -> Tensor:
        """Return `x` as the layer reads it; the gradient passes rounding unchanged, and stops where the grid ends."""
        if self.input_bits is None:
            return x
        step, zero = self.input_scale.view(SCALE_DTYPE).float(), self.input_zero.float()
        low, high = -zero, 2**self.input_bits - 1 - zero
        codes = torch.maximum(torch.minimum((x / step).round(), high), low)
        rounded = codes.to(x.dtype) * step.to(x.dtype)
        if torch.is_grad_enabled() and x.requires_grad:
            soft = x.clamp((low * step).to(x.dtype), (high * step).to(x.dtype))
            rounded = rounded + (soft - soft.detach())  # a zero that has a gradient
        return rounded

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> None:
        """Say where (rows, columns) the values that `set_weight` or `set_quantized` will store are."""
        packed = pack(mask, 1)
        if self.weight_mask.is_meta:
            self.weight_mask = nn.Parameter(packed, requires_grad=False)
        else:
            self.weight_mask.copy_(packed)

    def mask(self) -> Tensor:
        """Return where values are stored, bool (rows, columns); everywhere unless the layer is sparse."""
        if not self.sparse:
            return torch.ones(self.rows, self.columns, dtype=torch.bool, device=self.weight.device)
        return unpack(self.weight_mask, 1, self.rows * self.columns).view(self.rows, self.columns).bool()

    def check(self, where: str) -> None:
        """Raise CheckpointError when the mask, as loaded, has not as many places as there are values."""
        if self.sparse and int(self.mask().sum()) != self.nonzeros:
            raise CheckpointError(f"{where}: the mask has {int(self.mask().sum())} places for {self.nonzeros} values")

    def quantized(self) -> Quantized:
        """Return codes, scales and zero points, as matrices; TypeError when the weight is on no grid."""
        if not isinstance(self.grid, Grid):
            raise TypeError("the layer's weight is on no grid; use dequantized() or clustered()")
        scale, zero = self._scales(self.grid)
        codes = unpack_codes(self.weight_codes, self.grid, self.nonzeros or self.rows * self.columns, self.sparse)
        if self.sparse:
            empty = torch.zeros((), dtype=torch.int8, device=codes.device)
            base = empty if zero is None else spread(zero, self.columns, self.grid)
            codes = base.expand(self.rows, self.columns).masked_scatter(self.mask(), codes)
        return Quantized(codes.view(self.rows, self.columns), scale, zero, self.grid)

    def clustered(self) -> Clustered:
        """Return codes, as a matrix, and codebooks; TypeError when the weight has no codebook."""
        book = self._book()
        count = (self.nonzeros or self.rows * self.columns) // book.dim
        codes = unpack(self.weight_codes, book.bits, count)
        if self.sparse:
            codes = codes.new_zeros(self.rows, self.columns).masked_scatter(self.mask(), codes)
        return Clustered(codes.view(self.rows, -1), self._words(book), book)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight the layer computes with, (rows, columns); float values pass the gradient on."""
        if isinstance(self.grid, Codebook):
            weight = self.clustered().dequantize(dtype)
            return weight * self.mask() if self.sparse else weight
        if self.grid is not None:
            return self.quantized().dequantize(dtype)
        values = self.weight.to(dtype)
        return values.new_zeros(self.rows, self.columns).masked_scatter(self.mask(), values)

    def wide(self, dtype: torch.dtype) -> Tensor:
        """Return `dequantized`, kept between calls in inference: widening costs a small batch more than its product.

        In training it is made anew each time, so that nothing outlives a step.
        """
        if self.training or torch.is_grad_enabled() or "weight" not in self._parameters:
            return self.dequantized(dtype)
        key = (*self._stored(), dtype)
        if self._wide is None or not _same(self._wide[0], key):
            self._wide = (key, self.dequantized(dtype))
        return self._wide[1]

    def lookup(self, ids: Tensor) -> Tensor:
        """Return only the rows `ids` (any shape) of `dequantized`, (*ids.shape, columns), in the layer's dtype."""
        rows, dtype = ids.flatten(), self.weight.dtype
        if self.grid is None:
            values, mask = self._sparse_lookup(rows, lambda at: self.weight[at])
            found = torch.where(mask, values, 0).to(dtype)
        elif isinstance(self.grid, Codebook):
            found = self._words_of(rows, self.grid, dtype)
        else:
            found = self._codes_of(rows, self.grid).dequantize(dtype)
        return found.view(*ids.shape, self.columns)

    def _words_of(self, rows: Tensor, book: Codebook, dtype: torch.dtype) -> Tensor:
        """Return the rows `rows` (n,) of a weight with codebooks, (n, columns)."""
        if self.sparse:
            codes, mask = self._sparse_lookup(rows, lambda at: unpack_at(self.weight_codes, book.bits, at))
            return gather(codes, self._words(book), book, rows, self.rows, dtype) * mask
        codes = self._row_codes(rows, book.bits, self.columns // book.dim)
        return gather(codes, self._words(book), book, rows, self.rows, dtype)

    def _row_codes(self, rows: Tensor, width: Width, columns: int) -> Tensor:
        """Return the codes of the rows `rows` (n,), uint8 (n, columns): whole bytes at once where a row has those."""
        bytes_, rest = divmod(columns, 5) if width == "ternary" else divmod(columns * width, 8)
        if rest:
            return unpack_at(self.weight_codes, width, self._positions(rows, columns))
        stored = F.embedding(rows, self.weight_codes.view(self.rows, bytes_)).flatten()
        return unpack(stored, width, len(rows) * columns).view(-1, columns)

    def _codes_of(self, rows: Tensor, grid: Grid) -> Quantized:
        scale, zero = self._scales(grid)
        if not grid.per_tensor:
            scale = F.embedding(rows, scale.view(torch.int16)).view(SCALE_DTYPE)
            zero = None if zero is None else F.embedding(rows, zero)
        if self.sparse:
            codes, mask = self._sparse_lookup(rows, lambda at: unpack_codes(self.weight_codes, grid, at, sparse=True))
            codes = torch.where(mask, codes, 0 if zero is None else spread(zero, self.columns, grid))
        else:
            codes = signed(self._row_codes(rows, stored_width(grid), self.columns), grid)
        return Quantized(codes, scale, zero, grid)

    def _sparse_lookup(self, rows: Tensor, values_at: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return values by column, anything where there is none, and where there is one, both (rows, columns)."""
        mask = unpack_at(self.weight_mask, 1, self._positions(rows, self.columns)).bool()
        key = (self.weight_mask, version_of(self.weight_mask))
        if self._starts is None or not _same(self._starts[0], key):
            ends = self.mask().sum(1).cumsum(0)
            self._starts = (key, ends.roll(1).index_fill_(0, torch.zeros_like(ends[:1]), 0))
        at = self._starts[1][rows][:, None] + mask.cumsum(1) - 1
        return values_at(at.clamp(min=0)), mask

    def _positions(self, rows: Tensor, columns: int) -> Tensor:
        """Return where in a stream of `columns` per row `rows` are; IndexError for a row that is not there."""
        first = torch.arange(self.rows, device=rows.device).index_select(0, rows) * columns
        return first[:, None] + torch.arange(columns, device=rows.device)

    def _book(self) -> Codebook:
        if not isinstance(self.grid, Codebook):
            raise TypeError("the layer's weight has no codebook; use dequantized() or quantized()")
        return self.grid

    def _words(self, book: Codebook) -> Tensor:
        return self.weight_words.view(SCALE_DTYPE).view(-1, 2**book.bits, book.dim)

    def _scales(self, grid: Grid) -> tuple[Tensor, Tensor | None]:
        shape = grid.shape(self.rows, self.columns)
        scale = self.weight_scale.view(SCALE_DTYPE).view(shape)
        if grid.symmetric:
            return scale, None
        return scale, unpack(self.weight_zero, grid.bits, scale.numel()).view(shape)

    def _stored(self) -> tuple[Any, ...]:
        tensors = [p for name, p in self._parameters.items() if name == "weight" or name in AUXILIARY]
        return tuple(x for p in tensors if p is not None for x in (p, version_of(p)))

    def _store(self, **tensors: Tensor) -> None:
        if self.grid is not None and self.weight.is_meta:
            values = torch.empty_like(self.weight, device=tensors["weight_codes"].device)
            self.weight = nn.Parameter(values, requires_grad=False)
        for name, values in tensors.items():
            old = self._parameters[name]
            if old is None or old.is_meta:
                setattr(self, name, nn.Parameter(values, requires_grad=values.is_floating_point()))
            else:
                old.copy_(values)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Packed:
        self.forget()  # the model moves to another device
        return super()._apply(fn, recurse)

    def forget(self) -> None:
        """Drop what is kept between calls."""
        self._wide = self._starts = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_wide": None, "_starts": None}  # a copy makes its own

    def extra_repr(self) -> str:
        """Describe how the weight is stored."""
        bits = "float" if self.grid is None else f"bits={self.grid.bits}"
        bits = repr(self.grid) if isinstance(self.grid, Codebook) else bits
        bits += "" if self.input_bits is None else f", input_bits={self.input_bits}"
        return bits if self.nonzeros is None else f"{bits}, nonzeros={self.nonzeros}"


def _frozen(size: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)


def _product(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]


def _same(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    """Compare by identity where there are tensors."""
    return len(ours) == len(theirs) and all(
        a is b if isinstance(a, Tensor) else a == b for a, b in zip(ours, theirs, strict=True)
    )
