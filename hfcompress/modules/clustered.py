"""Weights on codebooks: the wrapper that trains the codewords, and the packed layer it leaves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.errors import TargetError
from ..ops.codebooks import Clustered, Codebook, cluster
from ..ops.kmeans import Init
from ..ops.losses import straight_through
from ..ops.quantization import SCALE_DTYPE
from .packed import packed_like, replace_
from .storage import Packed
from .ties import sharers

PRUNED = 0.05  # share of zeros from which a weight counts as pruned: its zeros stay, under a mask


class ClusteredWeight(nn.Module):
    """Parametrization W' = codeword of each weight once switched `on`; then only the codewords train.

    A codeword's gradient is the sum of its members' (Han 2016, section 3.3). The wrapper sees (rows, …), or the values
    under a mask where a layer stores those alone. Zeros of a pruned weight stay zero and belong to no codeword.
    """

    on: Tensor
    index: Tensor
    keeps_zeros: Tensor
    mask: Tensor | None

    def __init__(self, module: nn.Module, shape: torch.Size, book: Codebook) -> None:
        super().__init__()
        mask = module.mask() if isinstance(module, Packed) else None
        rows, columns = mask.shape if mask is not None else (shape[0], shape[1:].numel())
        self.book = book
        blocks = book.numel(rows, columns) // 2**book.bits
        self.words = nn.Parameter(torch.zeros(blocks, 2**book.bits, 1))
        self.register_buffer("on", torch.zeros((), dtype=torch.bool))
        self.register_buffer("keeps_zeros", torch.zeros((), dtype=torch.bool))
        self.register_buffer("index", torch.zeros(shape, dtype=torch.int32))  # of each weight's codeword, over all
        self.register_buffer("mask", mask, persistent=False)

    @torch.no_grad()
    def start(self, weight: Tensor, init: Init, seed: int, importance: Tensor | None = None) -> None:
        """Switch on, with codewords fitted to `weight`, laid out as the wrapper sees it."""
        matrix, where = self._matrix(weight)
        whole = bool(where.all())
        counts = importance if whole else where if importance is None else where * importance
        found = cluster(matrix, self.book, counts, init=init, seed=seed)
        self.keeps_zeros.fill_(self.mask is None and not whole)
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
        values = words.flatten().index_select(0, self.index.flatten()).view_as(weight)
        return values * (weight != 0) if self.keeps_zeros else values

    @torch.no_grad()
    def clustered(self, weight: Tensor) -> tuple[Clustered, Tensor | None]:
        """Return what is to be stored for `weight`, and where (rows, columns) it is not zero if zeros are left out."""
        codes = (self.index % 2**self.book.bits).to(torch.uint8)
        if self.mask is not None:
            codes = codes.new_zeros(self.mask.shape).masked_scatter(self.mask, codes)
        stored = Clustered(codes.flatten(1), self.words.detach().to(SCALE_DTYPE), self.book)
        if self.mask is None and not self.keeps_zeros:
            return stored, None
        return stored, (weight.flatten(1) != 0 if self.mask is None else self.mask)

    def _matrix(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight as (rows, columns), and where it counts."""
        if self.mask is not None:
            return weight.new_zeros(self.mask.shape).masked_scatter(self.mask, weight), self.mask
        matrix = weight.flatten(1)
        where = matrix != 0
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
