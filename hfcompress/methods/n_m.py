"""N:M sparsity: of every m consecutive weights of a row, n stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..core.schedule import Schedule
from ..core.sparsity import Calibrated
from ..modules.blockwise import observe_all
from ..modules.masked import MaskedWeight, choose, mask_, refuse_uneven, store_zeros_
from ..modules.matrix import as_matrix, matrix, stored
from ..modules.packable import computed, unseen
from ..modules.parametrizations import attach, find
from ..ops.masks import keep_n_of_m
from ..ops.moments import ColumnNorms


class NOfMConfig(Calibrated):
    """Settings of N:M sparsity."""

    n: int = Field(2, ge=1, description="Weights kept in every group.")
    m: int = Field(4, ge=2, description="Consecutive inputs of a row that make a group.")
    score: Literal["weights", "activations"] = Field(
        "weights",
        description="weights: |W|; activations: |W| times the norm of the input it meets (Sun 2023), from calibration.",
    )
    schedule: Schedule = Field(
        default_factory=Schedule, description="How the number kept falls from m to n while training; at once without."
    )

    @model_validator(mode="after")
    def _removes_something(self) -> NOfMConfig:
        if self.n >= self.m:
            raise ValueError(f"n must be below m, or nothing would change; got {self.n} of {self.m}")
        return self


@register
class NOfM(Method[NOfMConfig]):
    """Keeps the n strongest of every m weights along the inputs, the pattern that sparse matrix units take."""

    info = MethodInfo(
        name="n_m",
        title="N:M sparsity",
        summary="Of every m weights in a row the n strongest stay (2:4, 4:8), by weight or by weight times input norm.",
        category=Category.PRUNING,
        phase=Phase.SPARSITY,
        papers=("https://arxiv.org/abs/2104.08378", "https://arxiv.org/abs/2306.11695"),
    )
    Config = NOfMConfig

    @property
    def needs(self) -> Needs:
        """Calibration batches, where inputs count."""
        return Needs(calibration=self.config.score == "activations")

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Put an open mask on every target."""
        why_not = unseen if self.needs.calibration else computed
        self._paths = choose(model, self.config, self.info.name, why_not=why_not)
        refuse_uneven(model, self._paths, self.config.m)
        for path in self._paths:
            weight = matrix(model.get_submodule(path))
            attach(model, path, MaskedWeight(weight, weight.shape[1]), as_matrix=True)
        return self._paths

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Keep the norms of every target's inputs."""
        found = observe_all(model, batches, self._paths, ColumnNorms, self.info.title)
        for path, statistic in found.items():
            find(model, path, MaskedWeight).norms = statistic.norms()

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Keep as few of m weights as the schedule wants by now."""
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
        kept = self.config.m - int(strength * (self.config.m - self.config.n))
        masks = []
        for path in self._paths:
            module, norms = model.get_submodule(path), find(model, path, MaskedWeight).norms
            scores = as_matrix(module, stored(module)).float().abs()
            scores = scores if norms is None else scores * norms
            masks.append(keep_n_of_m(scores, kept, self.config.m))
        return masks
