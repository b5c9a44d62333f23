"""Paths as a checkpoint states them: in-memory names without the base model's prefix.

So a checkpoint with a task head also loads into the bare base model; a path of the head starts with "/".
"""

from __future__ import annotations

from torch import nn

from ..core.families import base_prefix

POOLER = "pooler"


def relative(model: nn.Module, path: str) -> str:
    """Return the path, of a module or tensor, as a checkpoint states it."""
    prefix = base_prefix(model)
    if not prefix:
        return path
    return path.removeprefix(prefix) if path.startswith(prefix) else f"/{path}"


def absolute(model: nn.Module, path: str) -> str | None:
    """Return the path in this model; None for a path of a head this model was loaded without."""
    prefix = base_prefix(model)
    if path.startswith("/"):
        return path[1:] if prefix else None
    return prefix + path


def optional(path: str) -> bool:
    """A pooler may be left out of a base model when it is loaded; every other module has to be there."""
    return path.split(".")[0] == POOLER
