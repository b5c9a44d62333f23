"""SVD: each weight as the product of two factors, by its own singular values."""

from __future__ import annotations

import torch
from torch import nn

from ..core.factorization import RankConfig
from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.registry import register
from ..modules.lowrank import Show, Split, split_all_
from ..modules.matrix import as_matrix, stored
from ..ops.lowrank import Decomposition, decompose


class SVDConfig(RankConfig):
    """Settings of the singular value decomposition."""


@register
class SVD(Method[SVDConfig]):
    """Cuts weights to the rank that loses least in them; in a stage that trains, at its end."""

    info = MethodInfo(
        name="svd",
        title="SVD",
        summary="Linear layers and embeddings become two factors, the truncated SVD of each weight.",
        category=Category.LOW_RANK,
        phase=Phase.FACTOR,
        papers=("https://arxiv.org/abs/1404.0736",),
        alone=True,
        examples={"": {"keep": 0.5}},
    )
    Config = SVDConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Choose the layers; TargetError for one that does not split, or a rank that saves nothing."""
        self._split = Split.choose(model, self.config, self.info.name)
        self._show = Show(model, self._split.places)
        return self._split.paths

    @torch.no_grad()
    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Show the cut weights at the end of the stage, so that what is evaluated is what will be stored."""
        if fraction < 1.0:
            self._show.off(model)
            return
        self._found = {path: _decomposed(model, path) for path in self._split.paths}
        ranks = self._split.decide({path: found.squares for path, found in self._found.items()})
        cuts = {path: self._found[path].cut(rank) for path, rank in ranks.items() if rank is not None}
        self._show.on(model, {path: up @ down for path, (down, up) in cuts.items()})

    def settled(self, fraction: float) -> bool:
        """Say whether weights are cut, which they are at the end of the stage."""
        return fraction >= 1.0

    def finalize(self, model: nn.Module) -> None:
        """Put the factors in place."""
        self._show.remove(model)
        split_all_(model, self._found, self._split.ranks)
        del self._found

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return layers split and left whole, their weights before and after, and the least and largest rank."""
        return self._split.report()


def _decomposed(model: nn.Module, path: str) -> Decomposition:
    module = model.get_submodule(path)
    return decompose(as_matrix(module, stored(module)))
