"""Layers whose weight is a product of small factors, each a plain layer of its own: linear, embedding, convolution.

Beside the factors stands an empty float `weight`, as beside the codes of a packed layer: models ask their layers for
its dtype and device, and read by a loader that does not know the factors its shape fits no layer, so that the load
fails instead of leaving a weight at random.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from ..core.errors import TargetError
from ..core.families import direct_weights
from .parametrizations import trainable
from .ties import declare_ties_, refuse_shared

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


_SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    FactorizedLinear: ("in_features", "out_features"),
    FactorizedConv1D: ("nf", "nx"),
    FactorizedEmbedding: ("num_embeddings", "embedding_dim", "padding_idx"),
    TuckerConv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
    CPConv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
}
_PRODUCTS = {nn.Linear: FactorizedLinear, Conv1D: FactorizedConv1D, nn.Embedding: FactorizedEmbedding}
PRODUCTS = tuple(_PRODUCTS)  # the classes of layers that split into two matrices


def refuse_unsplittable(
    model: nn.Module,
    path: str,
    kinds: tuple[type[nn.Module], ...] = PRODUCTS,
    where: str = "",
    *,
    shared: bool = False,
) -> None:
    """Raise TargetError for a layer that can't be replaced by factors: of another class, or read by the model itself.

    One that shares its weight is refused too, unless `shared` says that those it shares it with are split along.
    """
    module = model.get_submodule(path)
    kind = parametrize.type_before_parametrizations(module)
    prefix = f"{where}: " if where else ""
    if kind not in kinds:
        known = ", ".join(k.__name__ for k in kinds)
        raise TargetError(
            f"{prefix}{path}: a {kind.__name__} does not split into factors; {known} do (subclasses compute otherwise, "
            "and packed weights are codes: factorize before packing); add it to `ignore`"
        )
    if path in direct_weights(model):
        raise TargetError(f"{prefix}{path}: the model reads this weight itself, so it can't be split; ignore it")
    if not shared:
        refuse_shared(model, path)


@torch.no_grad()
def factorize_(model: nn.Module, path: str, kind: type[Factorized], factors: dict[str, Tensor], **ranks: int) -> None:
    """Put a `kind` with these factors, weights by name, in place of the layer at `path`; its bias and mode stay.

    Raises TargetError as `refuse_unsplittable` does, and where training wrappers of another method are on the layer.
    """
    old: Any = model.get_submodule(path)
    if parametrize.is_parametrized(old):
        raise TargetError(f"{path}: two methods of this stage claim its weight; add it to the `ignore` of one")
    arguments: dict[str, Any] = {name: getattr(old, name) for name in _SIZES[kind]}
    bias = getattr(old, "bias", None)
    more = {"bias": bias is not None} if kind in (FactorizedLinear, TuckerConv2d, CPConv2d) else {}
    make: Any = kind
    with torch.device("meta"):
        new = make(**arguments, **ranks, **more, dtype=old.weight.dtype)
    learns = trainable(old)
    for name, values in factors.items():
        values = values.to(old.weight.dtype).contiguous()
        getattr(new, name).weight = nn.Parameter(values, requires_grad=learns)
    if bias is not None:
        new.last.bias = bias
    new.weight = nn.Parameter(old.weight.new_empty(new.weight.shape), requires_grad=False)
    model.set_submodule(path, new.train(old.training))


def split_(model: nn.Module, path: str, down: Tensor, up: Tensor) -> None:
    """Put the product `up` (rows, rank) `down` (rank, columns) in place of the weight (rows, columns) at `path`.

    Rows and columns as `matrix` has them. Of an embedding (tokens, dim) the table is `up` and the projection `down`.
    """
    kind = _PRODUCTS[type(model.get_submodule(path))]
    first, second = (up, down.T) if kind is FactorizedEmbedding else (down, up)
    factorize_(model, path, kind, {"down": first, "up": second}, rank=len(down))


def split_tied_(model: nn.Module, group: Sequence[tuple[str, nn.Module]], down: Tensor, up: Tensor) -> None:
    """Split a layer as `split_` does, and every one tied to it: they share both factors, which stay one tensor each.

    Of a token table and a layer that gives logits only the narrow table stays one. The second reads the projection
    transposed, for which a plain linear layer needs a copy of its own; the two may come to differ in training, as in
    ALBERT's head for masked words.
    """
    path, module = group[0]
    split_(model, path, down, up)
    first: Any = model.get_submodule(path)
    made: dict[int, nn.Module] = {id(module): first}
    for other, twin in group[1:]:
        if id(twin) not in made:
            split_(model, other, down, up)
            made[id(twin)] = model.get_submodule(other)
            _share_factors_(made[id(twin)], first)
        model.set_submodule(other, made[id(twin)])
    declare_ties_(model)


def _share_factors_(new: Any, first: Any) -> None:
    tables = [isinstance(layer, FactorizedEmbedding) for layer in (new, first)]
    if tables[0] == tables[1]:
        new.down.weight, new.up.weight = first.down.weight, first.up.weight
    else:
        narrow = [layer.down if table else layer.up for layer, table in zip((new, first), tables, strict=True)]
        narrow[0].weight = narrow[1].weight
    new.weight = first.weight
