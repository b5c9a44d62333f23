"""An embedding table as two small ones, which an index reaches by its quotient and its remainder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.hashing import Combine, fit_tables
from .matrix import stored


class HashedEmbedding(nn.Module):
    """Row i is quotients[i // buckets] * remainders[i % buckets], or their sum: no two rows are the same pair.

    The empty `weight` says dtype and device, and fits no plain table, so that a loader that does not know this class
    fails.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        dtype: torch.dtype | None = None,
        *,
        buckets: int,
        combine: Combine = "multiply",
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.buckets, self.combine = buckets, combine
        height = math.ceil(num_embeddings / buckets)
        self.weight = nn.Parameter(torch.empty(num_embeddings, 0, dtype=dtype), requires_grad=False)
        self.quotients = nn.Parameter(torch.empty(height, embedding_dim, dtype=dtype))
        self.remainders = nn.Parameter(torch.empty(buckets, embedding_dim, dtype=dtype))

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (…) to vectors (…, dim)."""
        first = F.embedding(ids // self.buckets, self.quotients)
        second = F.embedding(ids % self.buckets, self.remainders)
        return first * second if self.combine == "multiply" else first + second

    def extra_repr(self) -> str:
        """Describe the layer as nn.Embedding does."""
        return f"{self.num_embeddings}, {self.embedding_dim}, buckets={self.buckets}, combine={self.combine}"


class HashedWeight(nn.Module):
    """Parametrization that shows a table as its two small ones make it, once `on`; then only those train."""

    on: Tensor

    def __init__(self, weight: Tensor, buckets: int, combine: Combine) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.buckets, self.combine = buckets, combine
        self.register_buffer("on", torch.zeros((), dtype=torch.bool))
        self.quotients = nn.Parameter(torch.zeros(math.ceil(rows / buckets), columns))
        self.remainders = nn.Parameter(torch.zeros(buckets, columns))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Switch on, with tables fitted to `weight`."""
        quotients, remainders = fit_tables(weight, self.buckets, self.combine)
        self.quotients.copy_(quotients)
        self.remainders.copy_(remainders)
        self.on.fill_(True)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the table (rows, columns)."""
        if not self.on:
            return weight
        first, second = self.quotients[:, None], self.remainders[None]
        whole = first * second if self.combine == "multiply" else first + second
        return whole.flatten(0, 1)[: len(weight)].to(weight.dtype)


def put_hashed_(model: nn.Module, path: str, wrapper: HashedWeight) -> None:
    """Replace the plain table at `path` by the two tables that `wrapper` trained, in place."""
    table = model.get_submodule(path)
    weight = stored(table)
    new = HashedEmbedding(
        table.num_embeddings,  # type: ignore[arg-type]
        table.embedding_dim,  # type: ignore[arg-type]
        table.padding_idx,  # type: ignore[arg-type]
        weight.dtype,
        buckets=wrapper.buckets,
        combine=wrapper.combine,
    ).to(weight.device)
    new.quotients.data.copy_(wrapper.quotients.data)
    new.remainders.data.copy_(wrapper.remainders.data)
    model.set_submodule(path, new.train(table.training))
