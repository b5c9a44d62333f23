"""Modules that train beside a model and are no part of it: they are in the optimizer and in training checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import LifecycleError
from .plain_names import COMPANIONS
from .seen import as_tokens


class Projection(nn.Module):
    """Takes hidden states of one width to those of another (FitNets, Romero 2015, section 2.2; TinyBERT, eq. 8).

    Not an nn.Linear: that is what methods look for in a model to change it.
    """

    def __init__(self, width: int, wanted: int, generator: torch.Generator) -> None:
        super().__init__()
        # Columns at right angles, so that no direction of the hidden state is lost at the start.
        tall = torch.linalg.qr(torch.randn(max(width, wanted), min(width, wanted), generator=generator)).Q
        self.weight = nn.Parameter((tall if wanted > width else tall.T).contiguous())
        self.bias = nn.Parameter(torch.zeros(wanted))

    @torch.no_grad()
    def fit_(self, ours: Tensor, theirs: Tensor) -> None:
        """Start where the rows of two tables, (entries, width) and (entries, wanted), are nearest: by least squares."""
        rows = torch.cat([ours.float(), torch.ones(len(ours), 1, device=ours.device)], 1).cpu()
        solution = torch.linalg.lstsq(rows, theirs.float().cpu()).solution
        self.weight.copy_(solution[:-1].T)
        self.bias.copy_(solution[-1])

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `hidden` (..., width) as (..., wanted), in float32."""
        return F.linear(hidden.float(), self.weight, self.bias)


class ProjectedStates:
    """Adds hidden states through projections to those that a model returns while it trains.

    They are computed inside the forward pass, and lie behind the others in the same tuple: there distributed training
    looks for the parameters to wait for. What no loss reads must not be among them for the same reason; `wanted` says
    which are, of so many. One projection serves all; of several each has its own, and None stays as it is.
    """

    def __init__(
        self, model: nn.Module, projections: Sequence[nn.Module | None], wanted: Callable[[int], Collection[int]]
    ) -> None:
        self._projections, self._wanted = projections, wanted
        self._indices: list[int] = []
        self._hook = model.register_forward_hook(self._after)

    def split(self, states: Sequence[Tensor]) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Return the model's own hidden states, and by index those that went through a projection."""
        own = len(states) - len(self._indices)
        return list(states[:own]), dict(zip(self._indices, states[own:], strict=True))

    def remove(self) -> None:
        """Take the hook off."""
        self._hook.remove()

    def _after(self, model: nn.Module, _: Any, outputs: Any) -> None:
        states = outputs.get("hidden_states") if model.training and isinstance(outputs, Mapping) else None
        if states:
            last = len(self._projections) - 1
            found = {i: self._projections[min(i, last)] for i in sorted(self._wanted(len(states)))}
            chosen = {i: module for i, module in found.items() if module is not None}
            self._indices = list(chosen)
            projected = (module(as_tokens(states[i])) for i, module in chosen.items())
            outputs["hidden_states"] = (*states, *projected)


def attach_companion_(model: nn.Module, name: str, module: nn.Module) -> None:
    """Let `module` train with `model`, on its device; LifecycleError when the name is taken."""
    if not hasattr(model, COMPANIONS):
        model.add_module(COMPANIONS, nn.ModuleDict())
    found: nn.ModuleDict = getattr(model, COMPANIONS)
    if name in found:
        raise LifecycleError(f"{name} is attached to this model already: finish the stage it belongs to first")
    found[name] = module.to(next(model.parameters()).device)


def companion_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of all that trains beside the model."""
    return list(getattr(model, COMPANIONS).parameters()) if hasattr(model, COMPANIONS) else []


def detach_companion_(model: nn.Module, name: str) -> None:
    """Take the module off the model, if it is there."""
    found: nn.ModuleDict | None = getattr(model, COMPANIONS, None)
    if found is not None and name in found:
        del found[name]
        if not found:
            delattr(model, COMPANIONS)
