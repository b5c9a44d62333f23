"""Magnitude pruning: the weights nearest to zero become zero."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.registry import register
from ..core.schedule import Schedule
from ..core.sparsity import Targets
from ..modules.masked import MaskedWeight, choose, mask_, store_zeros_
from ..modules.matrix import LAYERS, stored
from ..modules.parametrizations import attach
from ..ops.masks import keep_share


class MagnitudeConfig(Targets):
    """Settings of magnitude pruning."""

    targets: list[str] | None = Field(
        None,
        description="Module paths, re:<regex>, or class names (Linear, Conv2d); default: every linear layer in the "
        "model's blocks, and where those hold none every convolution.",
    )
    sparsity: float = Field(0.5, gt=0, lt=1, description="Share of the weights to set to zero.")
    scope: Literal["model", "layer"] = Field(
        "layer", description="layer: the same share of each layer; model: all layers compete."
    )
    schedule: Schedule = Field(
        default_factory=Schedule, description="How the share grows while training (Zhu & Gupta 2017); at once without."
    )


@register
class Magnitude(Method[MagnitudeConfig]):
    """Sets the smallest weights to zero, in one shot or step by step while the others are trained."""

    info = MethodInfo(
        name="magnitude",
        title="Magnitude pruning",
        summary="The smallest weights, per layer or over all, become zero; at once or on a schedule while training.",
        category=Category.PRUNING,
        phase=Phase.SPARSITY,
        papers=("https://arxiv.org/abs/1506.02626", "https://arxiv.org/abs/1710.01878"),
    )
    Config = MagnitudeConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Put an open mask on every target."""
        self._paths = choose(model, self.config, self.info.name, LAYERS)
        for path in self._paths:
            attach(model, path, MaskedWeight(stored(model.get_submodule(path))))
        return self._paths

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Mask as many weights as the schedule wants by now, smallest first."""
        mask_(model, self._paths, self.config.schedule(fraction), lambda strength: self._masks(model, strength))

    def settled(self, fraction: float) -> bool:
        """Say whether the schedule has reached its end."""
        return fraction >= self.config.schedule.end

    def finalize(self, model: nn.Module) -> None:
        """Make the zeros permanent and store the other weights alone where that is smaller."""
        self._counts = store_zeros_(model, self._paths)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return layers, their weights, how many of those are zero, and how many layers take fewer bytes for it."""
        return self._counts

    @torch.no_grad()
    def _masks(self, model: nn.Module, strength: float) -> list[Tensor]:
        scores = (stored(model.get_submodule(path)).abs() for path in self._paths)
        density = 1.0 - strength * self.config.sparsity
        if self.config.scope == "model":
            return keep_share(list(scores), density)
        return [keep_share([score], density)[0] for score in scores]
