"""Adapters of the peft library on layers of a model: put on, tied where weights are tied, merged or kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..core.errors import TargetError
from ..core.foreign_internals import adapt_with_
from ..ops.lowrank import decompose
from .adapted import Adapted, AdaptedConv1D, AdaptedLinear
from .bnb import BnbFormat, is_bnb
from .bnb_quantized import BnbRounded
from .matrix import matrix, set_matrix_
from .packed import PackedConv1D, PackedLinear
from .storage import Packed
from .ties import sharers

_NAME = "default"
# fields of peft's LoraConfig with which an adapter is more than the product of two matrices
MERGE_ONLY = ("use_dora", "lora_bias", "kasa_config")
_PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")


def add_adapters_(model: nn.Module, paths: Sequence[str], settings: Mapping[str, Any], seed: int) -> None:
    """Put an adapter on each layer of `paths`, with these fields of peft's LoraConfig; everything else freezes.

    Layers that share a weight share one adapter: one that each had of its own would be merged into the weight once for
    each. Raises TargetError for a layer peft has no adapter for, or that does not do with these settings.
    """
    import peft
    from peft.tuners.lora import Linear

    if any(adapter_layers(model)):
        raise TargetError("this model has adapters already; merge them first (peft's merge_and_unload)")
    groups = [sharers(model, path) for path in paths]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that PackedLinear is not known, that Conv1D keeps its weight the other way
        torch.manual_seed(seed)
        try:
            config = peft.LoraConfig(**settings, target_modules=[group[0][0] for group in groups])
            adapt_with_(config, {PackedLinear: Linear})  # computes with the layer, is never merged into it
            peft.inject_adapter_in_model(config, model, adapter_name=_NAME)
        except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
            raise TargetError(f"peft can't put an adapter with these settings on this model: {error}") from error
        for group in groups:
            _share_(model, group)


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield path and layer of every adapted layer, each layer once."""
    for path, module in model.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
            yield path, module


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the adapters' parameters, shared ones once."""
    found = {
        id(p): p for _, layer in adapter_layers(model) for n, p in layer.named_parameters() if n.startswith("lora_")
    }
    return list(found.values())


def keeps_codes(module: nn.Module) -> bool:
    """Say whether merging into this layer would round what was learnt, or fill its zeros."""
    return isinstance(module, Packed) or is_bnb(module)


@torch.no_grad()
def settle_adapters_(model: nn.Module, keep: bool) -> tuple[int, int]:
    """Merge every adapter into its layer, or keep it beside a layer that holds codes (with `keep`, beside any).

    Returns how many were merged and kept; layers that share an adapter count once.
    """
    merged = kept = 0
    for path, layer in list(adapter_layers(model)):
        base = layer.get_base_layer()
        places = [p for p, module in model.named_modules(remove_duplicate=False) if module is layer]
        if keep or keeps_codes(base):
            new = _beside(path, layer, base)
            kept += 1
        else:
            new = base
            if not getattr(layer, "follows", False):
                layer.merge(safe_merge=False)
                merged += 1
        for place in places:
            model.set_submodule(place, new)
    if hasattr(model, "peft_config"):
        del model.peft_config
    return merged, kept


@torch.no_grad()
def start_from_rounding_(model: nn.Module, sweeps: int) -> None:
    """Round the layers under the adapters to NF4, and let the adapters start with what that loses (LoftQ, Li 2023).

    Alternates Q = round(W - BA) and BA = the best approximation of W - Q of the adapter's rank (algorithm 1). The
    layers are left in float, with the values that quantizing them to NF4 in blocks of 64 will keep.
    """
    rounded = BnbRounded(BnbFormat("nf4"))
    rounded.on.fill_(True)
    for path, layer in adapter_layers(model):
        base = layer.get_base_layer()
        if not isinstance(base, nn.Linear | Conv1D):
            raise TargetError(f"{path}: LoftQ starts adapters of linear layers only, not of a {type(base).__name__}")
        weight = matrix(base).float()
        values, down, up = weight, weight[:0], weight[:, :0]
        for _ in range(sweeps):
            values = rounded(weight - up @ down)
            down, up = (f.float() for f in decompose(weight - values).cut(layer.r[_NAME]))
        set_matrix_(base, values)
        layer.lora_A[_NAME].weight.copy_(down)
        layer.lora_B[_NAME].weight.copy_(up / layer.scaling[_NAME])


def _share_(model: nn.Module, group: Sequence[tuple[str, nn.Module]]) -> None:
    """Let every layer of a group that shares a weight have the first one's adapter."""
    if len(group) == 1:
        return
    from peft.tuners.lora import Linear

    first: Any = model.get_submodule(group[0][0])
    made: dict[int, nn.Module] = {id(group[0][1]): first}
    configs: Any = model.peft_config
    for path, module in group[1:]:
        if type(first) is not Linear or type(module) is not type(group[0][1]):
            raise TargetError(
                f"{path}: its weight is shared with {group[0][0]}, which reads it otherwise; add both to `ignore`"
            )
        if id(module) not in made:
            twin: Any = Linear(module, _NAME, config=configs[_NAME], r=first.r[_NAME], lora_alpha=1)
            for part in _PARTS:
                setattr(twin, part, getattr(first, part))
            twin.scaling, twin.follows = first.scaling, True
            made[id(module)] = twin.train(module.training)
        model.set_submodule(path, made[id(module)])


def _beside(path: str, layer: Any, base: Any) -> Adapted:
    """Return the base layer with the adapter as a module of ours; TargetError for what is no sum of the two."""
    more = layer.use_dora[_NAME] or layer.lora_bias[_NAME] or "lora_diag" in dict(layer.named_children())
    if more or not len(layer.lora_A):
        raise TargetError(f"{path}: an adapter that is kept is a product of two matrices: no DoRA, bias or embedding")
    wide = isinstance(base, Conv1D | PackedConv1D) or getattr(base, "source_cls", None) is Conv1D
    down, up = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight * layer.scaling[_NAME]
    with torch.device("meta"):
        new: Adapted
        if wide:
            new = AdaptedConv1D(up.shape[0], down.shape[1], len(down))
        else:
            new = AdaptedLinear(down.shape[1], up.shape[0], len(down), bias=base.bias is not None)
    new.base = base
    new.down.weight, new.up.weight = nn.Parameter(down.detach().clone()), nn.Parameter(up.detach().clone())
    new.weight = nn.Parameter(down.new_empty(len(up), 0), requires_grad=False)
    return new.train(base.training)
