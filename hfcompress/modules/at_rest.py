"""How a model's tensors are to lie in a file, which changes nothing of what they are in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_MARK = "coded_at_rest"


def code_at_rest_(model: nn.Module) -> None:
    """Let every save of `model` store its tensors entropy-coded where that takes fewer bytes."""
    setattr(model, _MARK, True)


def coded_at_rest(model: nn.Module) -> bool:
    """Say whether `code_at_rest_` was called, or the model was loaded from a file that is coded."""
    return bool(getattr(model, _MARK, False))


def code_widths(model: nn.Module) -> Mapping[str, int]:
    """Return, by tensor name, the bits of one number in each packed stream, for widths that are whole bits."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, width in getattr(module, "packed_widths", {}).items():
            found[f"{path}.{name}"] = width
    return {name: width for name, width in found.items() if isinstance(width, int)}
