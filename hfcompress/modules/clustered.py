"""Weights on codebooks: the wrapper that trains the codewords, and the packed layer it leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import TargetError
from ..ops.clustering import cluster
from ..ops.codebooks import Clustered, Codebook
from ..ops.kmeans import Init
from ..ops.packing import packed_size
from ..ops.quantization import SCALE_DTYPE
from ..ops.straight_through import straight_through
from .masked import MaskedWeight
from .matrix import as_matrix, stored
from .packable import refuse_unpackable
from .packed import packed_like, replace_
from .parametrizations import attach, detach, find, has
from .storage import Packed
from .ties import sharers

PRUNED = 0.05  # share of zeros from which a weight counts as pruned: its zeros stay, under a mask


class ClusteredWeight(nn.Module):
    """Parametrization W' = codeword of each weight once switched `on`; then only the codewords train.

    A codeword's gradient is the sum of its members' (Han 2016, section 3.3). The wrapper sees (rows, …), or the values
    under a mask where a layer stores those alone. Zeros of a pruned weight stay zero and belong to no codeword, those
    too that a mask before this wrapper makes only later.
    """

    on: Tensor
    index: Tensor
    keeps_zeros: Tensor
    mask: Tensor | None

    def __init__(self, module: nn.Module, shape: torch.Size, book: Codebook, masked: bool = False) -> None:
        """Take the layer, the shape of its weight as the wrapper will see it, the codebook, and if it is masked."""
        super().__init__()
        mask = module.mask() if isinstance(module, Packed) else None
        rows, columns = mask.shape if mask is not None else (shape[0], shape[1:].numel())
        self.book = book
        blocks = book.numel(rows, columns) // (2**book.bits * book.dim)
        of = shape if book.dim == 1 else torch.Size((rows, columns // book.dim))
        self.words = nn.Parameter(torch.zeros(blocks, 2**book.bits, book.dim))
        self.register_buffer("on", torch.zeros((), dtype=torch.bool))
        self.register_buffer("keeps_zeros", torch.tensor(masked))
        self.register_buffer("index", torch.zeros(of, dtype=torch.int32))  # of each codeword, over all blocks
        self.register_buffer("mask", mask, persistent=False)

    @torch.no_grad()
    def start(self, weight: Tensor, init: Init, seed: int, importance: Tensor | None = None) -> None:
        """Switch on, with codewords fitted to `weight`, laid out as the wrapper sees it."""
        matrix, where = self._matrix(weight)
        whole = bool(where.all())
        counts = importance if whole else where if importance is None else where * importance
        found = cluster(matrix, self.book, counts, init=init, seed=seed)
        if self.mask is None and not whole:
            self.keeps_zeros.fill_(True)
        self.words.copy_(found.words.float())
        rows = torch.arange(len(matrix), device=matrix.device)
        block = self.book.blocks(rows, len(matrix), matrix.shape[1])
        index = (block * 2**self.book.bits + found.codes).to(torch.int32)
        self.index.copy_(index.view_as(self.index) if self.mask is None else index[self.mask])
        self.on.fill_(True)

    @torch.no_grad()
    def start_as_(self, other: ClusteredWeight) -> None:
        """Switch on with the codes of `other`, the wrapper of the same weight in another layer."""
        self.index.copy_(other.index.T if self.index.shape != other.index.shape else other.index)
        self.keeps_zeros.copy_(other.keeps_zeros)
        self.on.fill_(True)

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` by its codewords when switched on."""
        if not self.on:
            return weight
        words = straight_through(self.words.detach().to(SCALE_DTYPE).to(weight.dtype), self.words).to(weight.dtype)
        if self.book.dim > 1:
            return F.embedding(self.index, words.view(-1, self.book.dim)).reshape(weight.shape)
        values = words.flatten().index_select(0, self.index.flatten()).view_as(weight)
        return values * (weight != 0) if self.keeps_zeros else values

    @torch.no_grad()
    def clustered(self, weight: Tensor) -> tuple[Clustered, Tensor | None]:
        """Return what is to be stored for `weight`, and where (rows, columns) it is not zero if zeros are left out."""
        codes = (self.index % 2**self.book.bits).to(torch.uint8)
        if self.mask is not None:
            codes = codes.new_zeros(self.mask.shape).masked_scatter(self.mask, codes)
        stored = Clustered(codes.flatten(1), self.words.detach().to(SCALE_DTYPE), self.book)
        if self.mask is not None:
            return stored, self.mask
        where = weight.flatten(1) != 0
        return stored, where if self.keeps_zeros and not where.all() else None

    def _matrix(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight as (rows, columns), and where it counts."""
        if self.mask is not None:
            return weight.new_zeros(self.mask.shape).masked_scatter(self.mask, weight), self.mask
        matrix = weight.flatten(1)
        where = matrix != 0
        if self.book.dim > 1:
            return matrix, torch.ones_like(where)
        return matrix, where if float(where.float().mean()) < 1 - PRUNED else torch.ones_like(where)


@torch.no_grad()
def pack_clustered_(model: nn.Module, path: str, clustered: Clustered, mask: Tensor | None = None) -> None:
    """Store the layer at `path`, and those its weight is tied to, by codes and codebooks, in place.

    mask: bool (rows, columns), where the weight is not zero; only those codes are stored. TargetError as `pack_`.
    """
    if mask is not None and not mask.any():
        mask = mask.clone()
        mask.view(-1)[0] = True  # a tensor in a file has at least one element
    group = sharers(model, path)
    try:
        new = packed_like(group[0][1], clustered.book, None if mask is None else int(mask.sum()))
    except TargetError as error:
        raise TargetError(f"{path}: {error}") from error
    if mask is not None:
        new.set_mask(mask)
    new.set_clustered(clustered)
    replace_(model, group, new)


def gets_smaller(module: nn.Module, book: Codebook) -> bool:
    """Say whether codes and codebooks take fewer bytes than the weight, and the codebooks no more numbers than it."""
    weight = stored(module)
    matrix = (module.rows, module.columns) if isinstance(module, Packed) else as_matrix(module, weight).shape
    words = book.numel(*matrix)
    coded = packed_size(weight.numel() // book.dim, book.bits) + 2 * words
    return words <= max(math.prod(matrix), 2**book.bits * book.dim) and coded < weight.numel() * weight.element_size()


def wrap_clustered(model: nn.Module, path: str, book: Codebook) -> list[str]:
    """Put wrappers, switched off, on the layer at `path` and those its weight is tied to; return their paths, it first.

    They share their codewords. Raises TargetError for a layer that can't be packed, or is in few bits already.
    """
    group = sharers(model, path)
    layers = {id(module): (where, module) for where, module in reversed(group)}
    paths = [path, *(where for where, _ in layers.values() if where != path)]
    for where in paths:
        module = model.get_submodule(where)
        refuse_uncodable(where, module, book)
        masked = has(model, where, MaskedWeight)
        wrapper = ClusteredWeight(module, _layout(module, stored(module)).shape, book, masked)
        attach(model, where, wrapper, as_matrix=not isinstance(module, Packed))
        find(model, where, ClusteredWeight).words = find(model, path, ClusteredWeight).words
    return paths


def start_clustered_(model: nn.Module, paths: list[str], init: Init, seed: int) -> None:
    """Switch on the wrappers of tied layers, fitted to their weight, unless they are on."""
    first, *others = paths
    wrapper = find(model, first, ClusteredWeight)
    if wrapper.on:
        return
    wrapper.start(_seen(model, first), init, seed)
    for other in others:
        find(model, other, ClusteredWeight).start_as_(wrapper)


def words_group(model: nn.Module, paths: Iterable[str], rate: float | None) -> dict[str, Any]:
    """Return the optimizer group of the layers' shared values, without weight decay; None: at the weights' rate."""
    words = [find(model, path, ClusteredWeight).words for path in paths]
    return {"params": words, "weight_decay": 0.0, **({} if rate is None else {"lr": rate})}


def store_clustered_(model: nn.Module, paths: list[str]) -> None:
    """Take the wrappers of tied layers off, and store codes and codebooks, without the zeros of pruned layers."""
    clustered, mask = find(model, paths[0], ClusteredWeight).clustered(_seen(model, paths[0]))
    for path in paths:
        detach(model, path, ClusteredWeight)
    pack_clustered_(model, paths[0], clustered, mask)


def count_clustered(model: nn.Module, paths: list[str]) -> dict[str, float]:
    """Return the number of layers, the weights in them, and their bits per weight before entropy coding."""
    modules: list[Any] = [model.get_submodule(path) for path in paths]
    weights = sum(m.rows * m.columns for m in modules)
    size = sum(p.nbytes for m in modules for name, p in m.named_parameters() if name != "bias")
    return {"layers": len(modules), "weights": weights, "bits_per_weight": round(8 * size / weights, 4)}


def _layout(module: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight as the wrapper sees it: packed values as they lie, others as a matrix, kernels as they are."""
    return weight if isinstance(module, Packed | nn.Conv2d) else as_matrix(module, weight)


def _seen(model: nn.Module, path: str) -> Tensor:
    """Return the weight that the wrapper at `path` reads: as stored, less what wrappers before it mask."""
    module = model.get_submodule(path)
    weight = stored(module).detach()
    for wrapper in module.parametrizations["weight"]:  # type: ignore[index]
        if isinstance(wrapper, ClusteredWeight) or isinstance(getattr(wrapper, "inner", None), ClusteredWeight):
            break
        weight = wrapper(weight)
    return _layout(module, weight)


def refuse_uncodable(path: str, module: nn.Module, book: Codebook) -> None:
    """Raise TargetError for a layer that can't be packed, is in few bits already, or has columns the book can't cut."""
    refuse_unpackable(path, module)
    if book.dim == 1:
        return
    if isinstance(module, Packed):
        raise TargetError(f"{path}: its weight is pruned, and vectors have no zeros to leave out; add it to `ignore`")
    columns = as_matrix(module, stored(module)).shape[1]
    if not book.fits(columns):
        raise TargetError(f"{path}: its {columns} columns are no multiple of {book.dim}; set `dim` to a divisor")
