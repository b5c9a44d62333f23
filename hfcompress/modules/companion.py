"""Modules that train beside a model and are no part of it: they are in the optimizer and in training checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import LifecycleError

COMPANIONS = (
    "training_companions"  # the child of the model that holds them; training_state.py keeps it out of the model
)


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


def attach_companion_(model: nn.Module, name: str, module: nn.Module) -> None:
    """Let `module` train with `model`, on its device; LifecycleError when the name is taken."""
    if not hasattr(model, COMPANIONS):
        model.add_module(COMPANIONS, nn.ModuleDict())
    found: nn.ModuleDict = getattr(model, COMPANIONS)
    if name in found:
        raise LifecycleError(f"{name} is attached to this model already: finish the stage it belongs to first")
    found[name] = module.to(next(model.parameters()).device)


def companion(model: nn.Module, name: str) -> nn.Module | None:
    """Return the module that trains with the model under this name, if there is one."""
    found: nn.ModuleDict | None = getattr(model, COMPANIONS, None)
    return found[name] if found is not None and name in found else None


def detach_companion_(model: nn.Module, name: str) -> None:
    """Take the module off the model, if it is there."""
    found: nn.ModuleDict | None = getattr(model, COMPANIONS, None)
    if found is not None and name in found:
        del found[name]
        if not found:
            delattr(model, COMPANIONS)
