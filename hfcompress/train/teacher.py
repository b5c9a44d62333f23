"""The frozen model that students learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Teacher:
    """Runs the teacher on each batch as it comes (on the fly), without gradients and without dropout."""

    def __init__(self, model: nn.Module, device: torch.device | str | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        if device is not None:
            self.model.to(device)

    def __call__(self, batch: Mapping[str, Any], wants: frozenset[str] = frozenset()) -> Any:
        """Return the teacher's outputs for `batch`, with the extra outputs named in `wants`."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            return self.model(**inputs, **output_flags(wants))

    @property
    def watched(self) -> bool:
        """Whether something listens to what goes on inside the teacher while it runs."""
        return any(m._forward_hooks or m._forward_pre_hooks for m in self.model.modules())


def output_flags(wants: frozenset[str]) -> dict[str, bool]:
    """Return the keyword arguments that make a transformers model return the outputs in `wants`."""
    return {f"output_{name}": True for name in sorted(wants)}
