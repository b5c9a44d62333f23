"""Compress Hugging Face models for text and vision: smaller on disk, faster on the clock, every number measured.

`import hfcompress` teaches transformers' own `from_pretrained` to load compressed checkpoints; nothing else is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register as _register

if TYPE_CHECKING:
    from .core.errors import HFCompressError
    from .core.families import (
        AttentionPaths,
        Depth,
        EmbeddingPaths,
        Family,
        FeedForwardPaths,
        ImageTokens,
        register_family,
    )
    from .core.method import Category, Context, Method, MethodInfo, Needs, Phase
    from .core.registry import list_methods, register
    from .recipe.load import load_recipe
    from .recipe.schema import Recipe
    from .run.execute import run_recipe
    from .train.callback import HFCompressCallback
    from .train.compress import compress
    from .train.trainer import HFCompressMixin, HFCompressTrainer

__version__ = "0.1.0"

_register()

_HOMES = {
    "AttentionPaths": "core.families",
    "Category": "core.method",
    "Context": "core.method",
    "Depth": "core.families",
    "EmbeddingPaths": "core.families",
    "Family": "core.families",
    "FeedForwardPaths": "core.families",
    "HFCompressCallback": "train.callback",
    "HFCompressError": "core.errors",
    "HFCompressMixin": "train.trainer",
    "HFCompressTrainer": "train.trainer",
    "ImageTokens": "core.families",
    "Method": "core.method",
    "MethodInfo": "core.method",
    "Needs": "core.method",
    "Phase": "core.method",
    "Recipe": "recipe.schema",
    "compress": "train.compress",
    "list_methods": "core.registry",
    "load_recipe": "recipe.load",
    "register": "core.registry",
    "register_family": "core.families",
    "run_recipe": "run.execute",
}
__all__ = [
    "AttentionPaths",
    "Category",
    "Context",
    "Depth",
    "EmbeddingPaths",
    "Family",
    "FeedForwardPaths",
    "HFCompressCallback",
    "HFCompressError",
    "HFCompressMixin",
    "HFCompressTrainer",
    "ImageTokens",
    "Method",
    "MethodInfo",
    "Needs",
    "Phase",
    "Recipe",
    "compress",
    "list_methods",
    "load_recipe",
    "register",
    "register_family",
    "run_recipe",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    # every method's Config by its class name, without naming a method here
    if name.endswith("Config"):
        import_module(".methods", __name__)  # fills the registry
        for method in import_module(".core.registry", __name__).list_methods().values():
            if method.Config.__name__ == name:
                return method.Config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
