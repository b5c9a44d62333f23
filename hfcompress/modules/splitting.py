"""Layers replaced by their factors, tied ones together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from ..core.errors import TargetError
from ..core.families import direct_weights
from .factorized import CPConv2d, Factorized, FactorizedConv1D, FactorizedEmbedding, FactorizedLinear, TuckerConv2d
from .parametrizations import trainable
from .ties import declare_ties_, refuse_shared

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
