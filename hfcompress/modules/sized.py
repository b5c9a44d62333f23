"""Sizes outside of layers that follow the number of heads: attributes a forward pass reads, and per-head tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from ..core.errors import CheckpointError

KIND = "sizes"


def sizes_of(module: nn.Module, names: Collection[str]) -> dict[str, Any] | None:
    """Return the spec of a module's own sizes: integers by attribute, shapes by parameter; None when it has none.

    Only `names`, those of the model's family, are looked at: other integers are settings, or change as a model runs.
    """
    found: dict[str, Any] = {k: v for k, v in vars(module).items() if k in names and type(v) is int}
    found |= {k: list(p.shape) for k, p in module.named_parameters(recurse=False) if k in names}
    return {"kind": KIND, **found} if found else None


def resize_(module: nn.Module, spec: Mapping[str, Any], names: Collection[str], where: str) -> None:
    """Set the sizes of `module` to what `spec` says, in place; values of a resized parameter are left to be loaded.

    Raises CheckpointError for other names than the module has, and for a size below 1 or above the present one.
    """
    present = sizes_of(module, names)
    if present is None or set(present) != set(spec):
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


def _within(size: Any, limit: Any) -> bool:
    if isinstance(limit, list):
        return isinstance(size, list) and len(size) == len(limit) and all(map(_within, size, limit))
    return type(size) is int and 1 <= size <= limit
