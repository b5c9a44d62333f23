"""Paths as a checkpoint states them: in-memory names without the base model's prefix.

So a checkpoint with a task head also loads into the bare base model; a path of the head starts with "/".
"""

from __future__ import annotations

from torch import nn

from ..core.families import base_prefix, label_layers

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


def optional(model: nn.Module, path: str) -> bool:
    """Say whether this model may lack what a checkpoint states at `path`: every module has to be there but three kinds.

    A pooler can be left out of a base model; a class other than the checkpoint's own has another head, and other parts
    at the top, such as an encoder alone no decoder; and a layer for other labels has not the parts of the old one.
    """
    top = path.removeprefix("/").partition(".")[0]
    if top == POOLER:
        return True
    prefix, stated = base_prefix(model), getattr(getattr(model, "config", None), "architectures", None) or []
    if path.startswith("/") and prefix:
        parts = tuple(f"/{layer}." for layer in label_layers(model))
        return type(model).__name__ not in stated or path.startswith(parts)
    owner = model.get_submodule(prefix[:-1]) if prefix else model
    return type(model).__name__ not in stated and not hasattr(owner, top)
