"""Fisher-weighted SVD: two factors that lose least where the loss depends on the weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.factorization import CalibratedRankConfig
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.progress import track
from ..core.registry import register
from ..modules.importance import weight_fisher
from ..modules.lowrank import Split, split_all_
from ..modules.matrix import matrix
from ..ops.lowrank import Decomposition, decompose


class WeightedSVDConfig(CalibratedRankConfig):
    """Settings of the Fisher-weighted singular value decomposition."""

    weigh: Literal["inputs", "outputs"] = Field(
        "inputs",
        description="What the Fisher information is summed for: a layer's inputs, which are the rows of W in the "
        "paper's y = xW, or its outputs. Of an embedding table the rows, one per token, in either case.",
    )


@register
class WeightedSVD(Method[WeightedSVDConfig]):
    """Weighs rows of each weight by the root of their summed Fisher information before the SVD (Hsu 2022, eq. 7)."""

    info = MethodInfo(
        name="weighted_svd",
        title="Fisher-weighted SVD",
        summary="One-shot: two factors per weight, its SVD weighted by the Fisher information of its rows.",
        category=Category.LOW_RANK,
        phase=Phase.FACTOR,
        papers=("https://arxiv.org/abs/2207.00112",),
        needs=Needs(calibration=True),
        alone=True,
        examples={"": {"keep": 0.5}},
    )
    Config = WeightedSVDConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Choose the layers; TargetError for one that does not split, or a rank that saves nothing."""
        self._split, self._seed = Split.choose(model, self.config, self.info.name), ctx.seed
        return self._split.paths

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Measure the Fisher information, divide the rank, and split."""
        fisher = weight_fisher(model, self._split.paths, list(batches), self._seed, self.info.title)
        self._apply(model, fisher)

    def assume(self, model: nn.Module) -> None:
        """Let all weights count alike."""
        self._apply(model, {})

    def finalize(self, model: nn.Module) -> None:
        """Nothing is left to do."""

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return layers split and left whole, their weights before and after, and the least and largest rank."""
        return self._split.report()

    @torch.no_grad()
    def _apply(self, model: nn.Module, fisher: Mapping[str, Tensor]) -> None:
        found = {
            path: self._decomposed(model.get_submodule(path), fisher.get(path))
            for path in track(self._split.paths, lambda path: f"{self.info.title}: {path}")
        }
        split_all_(model, found, self._split.decide({path: f.squares for path, f in found.items()}))

    def _decomposed(self, module: nn.Module, fisher: Tensor | None) -> Decomposition:
        if fisher is None:
            return decompose(matrix(module))
        by_row = isinstance(module, nn.Embedding) or self.config.weigh == "outputs"
        weights = fisher.double().sum(1 if by_row else 0).sqrt()
        return decompose(matrix(module), rows=weights) if by_row else decompose(matrix(module), root=weights.diag())
