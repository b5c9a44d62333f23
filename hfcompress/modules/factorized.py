"""Layers whose weight is a product of small factors, each a plain layer of its own: linear, embedding, convolution.

Beside the factors stands an empty float `weight`, as beside the codes of a packed layer: models ask their layers for
its dtype and device, and read by a loader that does not know the factors its shape fits no layer, so that the load
fails instead of leaving a weight at random.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

Pair = tuple[int, int]


class Factorized(nn.Sequential):
    """Factors applied in turn; quantization, export and adapters see them as the plain layers they are."""

    def __init__(self, rows: int, dtype: torch.dtype | None, **factors: nn.Module) -> None:
        super().__init__(OrderedDict(factors))
        if dtype is not None:
            self.to(dtype)
        self.weight = nn.Parameter(torch.empty(rows, 0, dtype=dtype), requires_grad=False)

    @property
    def last(self) -> Any:
        """The factor that gives the output, and holds the bias."""
        return list(self)[-1]

    @property
    def bias(self) -> Any:
        """The bias of the last factor, None where it has none."""
        return getattr(self.last, "bias", None)


class FactorizedLinear(Factorized):
    """y = up(down(x)): W (out, in) = up (out, rank) times down (rank, in)."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        down, up = nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=bias)
        super().__init__(out_features, dtype, down=down, up=up)
        self.in_features, self.out_features, self.rank = in_features, out_features, rank


class FactorizedConv1D(FactorizedLinear):
    """The same under the names of transformers' Conv1D; its factors are plain linear layers."""

    def __init__(self, nf: int, nx: int, rank: int, dtype: torch.dtype | None = None) -> None:
        super().__init__(nx, nf, rank, True, dtype)
        self.nf, self.nx = nf, nx


class FactorizedEmbedding(Factorized):
    """A table (num, dim) as a narrow table (num, rank) and a projection (dim, rank), as ALBERT has (Lan 2019, 3.1)."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        padding_idx: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        down = nn.Embedding(num_embeddings, rank, padding_idx=padding_idx)
        super().__init__(num_embeddings, dtype, down=down, up=nn.Linear(rank, embedding_dim, bias=False))
        self.num_embeddings, self.embedding_dim, self.rank = num_embeddings, embedding_dim, rank
        self.padding_idx = padding_idx


class TuckerConv2d(Factorized):
    """A convolution as 1x1, kxk, 1x1 (Tucker-2 of the kernel over its channels, Kim 2015, eq. 7)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rank_in: int,
        rank_out: int,
        kernel_size: Pair,
        stride: Pair = (1, 1),
        padding: Pair | str = (0, 0),
        dilation: Pair = (1, 1),
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            out_channels,
            dtype,
            down=nn.Conv2d(in_channels, rank_in, 1, bias=False),
            core=nn.Conv2d(rank_in, rank_out, kernel_size, stride, padding, dilation, bias=False),
            up=nn.Conv2d(rank_out, out_channels, 1, bias=bias),
        )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, 1
        self.rank_in, self.rank_out, self.kernel_size = rank_in, rank_out, tuple(kernel_size)
        self.stride, self.padding, self.dilation = stride, padding, dilation


class CPConv2d(Factorized):
    """A convolution as 1x1, depthwise kx1 and 1xk, 1x1 (CP decomposition of the kernel, Lebedev 2014, eq. 5)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rank: int,
        kernel_size: Pair,
        stride: Pair = (1, 1),
        padding: Pair | str = (0, 0),
        dilation: Pair = (1, 1),
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        def line(dim: int) -> nn.Conv2d:
            def only(pair: Any, other: int) -> Any:
                return pair if isinstance(pair, str) else tuple(v if i == dim else other for i, v in enumerate(pair))

            size, step, edge, gap = (
                only(p, o) for p, o in ((kernel_size, 1), (stride, 1), (padding, 0), (dilation, 1))
            )
            return nn.Conv2d(rank, rank, size, step, edge, gap, groups=rank, bias=False)

        super().__init__(
            out_channels,
            dtype,
            down=nn.Conv2d(in_channels, rank, 1, bias=False),
            vertical=line(0),
            horizontal=line(1),
            up=nn.Conv2d(rank, out_channels, 1, bias=bias),
        )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, 1
        self.rank, self.kernel_size = rank, tuple(kernel_size)
        self.stride, self.padding, self.dilation = stride, padding, dilation
