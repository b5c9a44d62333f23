"""Adapters of the peft library on a model that a user hands over: found, and refused by what would change the model.

Saving a model with adapters writes these alone, so whatever else was done to it would be lost.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from .errors import TargetError


def has_adapters(model: Any) -> bool:
    """Say whether adapters of peft are on the model: one of peft's own wrappers, or layers put into it."""
    peft: Any = sys.modules.get("peft")  # who has not imported it has no adapters
    if peft is None or not isinstance(model, nn.Module):
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return is_wrapped(model) or any(isinstance(module, BaseTunerLayer) for module in model.modules())


def is_wrapped(model: Any) -> bool:
    """Say whether the model is peft's own wrapper, which saves and loads its adapters itself."""
    peft: Any = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel | peft.PeftMixedModel)


def refuse_adapters(model: Any, methods: Sequence[str] = ()) -> None:
    """Raise TargetError for a model with adapters; `methods` are the names of what would change it, if that is known.

    Without methods any model with adapters is refused.
    """
    if has_adapters(model):
        lost = f", not what {', '.join(methods)} leaves" if methods else ""
        raise TargetError(
            f"this model has adapters already (peft), and saving it keeps these alone{lost}. Merge them first: "
            f"{merging(model)}"
        )


def merging(model: Any) -> str:
    """Return the code that merges the adapters of this model."""
    if is_wrapped(model):
        return "model = model.merge_and_unload()"
    return "model = peft.PeftModel.from_pretrained(base_model, adapter_folder).merge_and_unload()"
