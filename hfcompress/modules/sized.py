"""Sizes outside of the layers in `spec`: attributes a forward pass reads, and shapes of a module's own parameters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..core.errors import CheckpointError
from ..core.foreign_internals import AnyBatchNorm, AnyConvolution

KIND = "sizes"


def sizes_of(module: nn.Module, names: Collection[str]) -> dict[str, Any] | None:
    """Return the spec of a module's own sizes: integers by attribute, shapes by parameter; None when it has none.

    Of integers only `names`, those of the model's family, are looked at: others are settings, or change as a model
    runs. Parameters are those of norms that models define themselves, class tokens, position embeddings, layer scales.
    """
    found: dict[str, Any] = {k: v for k, v in vars(module).items() if k in names and type(v) is int}
    found |= {k: list(p.shape) for k, p in module.named_parameters(recurse=False)}
    return {"kind": KIND, **found} if found else None


def resize_(module: nn.Module, spec: Mapping[str, Any], names: Collection[str], where: str) -> None:
    """Set the sizes of `module` to what `spec` says, in place; values of a resized parameter are left to be loaded.

    Raises CheckpointError for other names than the module has, and for a size below 1 or above the present one.
    """
    present = sizes_of(module, names)
    if present is None or not set(spec) <= set(present):
        raise CheckpointError(f"{where}: {sorted(set(spec) - {'kind'})} are not the sizes of a {type(module).__name__}")
    for name, size in spec.items():
        if name == "kind":
            continue
        if not _within(size, present[name]):
            raise CheckpointError(f"{where}: {name}={size!r} is not between 1 and the config's {present[name]}")
        if isinstance(size, int):
            setattr(module, name, size)
        elif size != present[name]:
            old: Any = getattr(module, name)
            empty = torch.empty(size, dtype=old.dtype, device=old.device)
            setattr(module, name, nn.Parameter(empty, requires_grad=old.requires_grad))
            follow_(module)


def follow_(module: Any) -> None:
    """Set the sizes a layer says it has to those of its parameters."""
    if isinstance(module, Conv1D):
        module.nx, module.nf = module.weight.shape
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, AnyConvolution):
        module.out_channels, inner = module.weight.shape[:2]
        if module.groups == module.in_channels:  # each channel by itself
            module.groups = module.out_channels
        module.in_channels = inner * module.groups
    elif isinstance(module, AnyBatchNorm):
        module.num_features = len(module.weight)
    elif hasattr(module, "normalized_shape"):
        module.normalized_shape = tuple(module.weight.shape)


def _within(size: Any, limit: Any) -> bool:
    if isinstance(limit, list):
        return isinstance(size, list) and len(size) == len(limit) and all(map(_within, size, limit))
    return type(size) is int and 1 <= size <= limit
