"""Cross-layer parameter sharing: neighbouring blocks use one set of weights (ALBERT)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.families import Block, blocks_of
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..modules.depth import block_influence
from ..modules.sharing import (
    attach_shared,
    finish_sharing_,
    groups_of,
    shared_names,
    start_sharing_,
)

_Index = Annotated[int, Field(ge=0)]


class ShareLayersConfig(StrictModel):
    """Settings of layer sharing."""

    group: int | Literal["all"] = Field(
        "all", description="Neighbouring blocks that share one set of weights: 2 for pairs; all: those of a stack do."
    )
    share: Literal["all", "attention", "ffn"] = Field(
        "all", description="What they share: everything in a block, norms included, or the layers of one part."
    )
    init: Literal["mean", "importance"] | _Index = Field(
        "mean",
        description="Where the shared weights start: at the mean of the group; at those of the block with this index "
        "in its group (the last in a shorter one); importance: at those of the block that changes the hidden state "
        "most on calibration data.",
    )


@register
class ShareLayers(Method[ShareLayersConfig]):
    """Lets blocks share weights from the first step of its stage on; train with a teacher, then or afterwards."""

    info = MethodInfo(
        name="share_layers",
        title="Layer sharing",
        summary="Neighbouring blocks share one set of weights, stored once (ALBERT); train after it.",
        category=Category.SHARING,
        phase=Phase.STRUCTURE,
        papers=("https://arxiv.org/abs/1909.11942",),
        alone=True,  # methods that act on single layers would see weights that are about to become one
    )
    Config = ShareLayersConfig

    @property
    def needs(self) -> Needs:
        """Only importance is measured, and thus needs data."""
        return Needs(calibration=self.config.init == "importance")

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Find what can be shared, and make it shareable; TargetError when there is nothing."""
        if self.config.group != "all" and self.config.group < 2:
            raise TargetError("share_layers.group: one block shares nothing; give 2 or more, or all")
        size = None if self.config.group == "all" else self.config.group
        self._blocks = len(blocks_of(model, ctx.family))
        self._groups = groups_of(model, ctx.family, size)
        if not self._groups:
            raise TargetError(f"share_layers: none of this model's {self._blocks} blocks has a neighbour")
        self._names = [shared_names(model, group, self.config.share) for group in self._groups]
        self._shares = [self._weights(len(group), self.config.init) for group in self._groups]
        for names in self._names:
            attach_shared(model, names)
        return [block.path for group in self._groups for block in group]

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Measure which block of each group matters most."""
        paths = [block.path for group in self._groups for block in group]
        influence = block_influence(model, paths, batches)
        self._shares = [self._weights(len(group), _best(group, influence)) for group in self._groups]

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Share as soon as the stage has begun."""
        if fraction > 0:
            for names, shares in zip(self._names, self._shares, strict=True):
                start_sharing_(model, names, [shares] * len(names))

    def finalize(self, model: nn.Module) -> None:
        """Tie what is shared, in memory and in the checkpoint."""
        self._saved = 0
        for names in self._names:
            self._saved += sum(model.get_parameter(first).numel() * len(others) for first, *others in names)
            finish_sharing_(model, names)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the number of blocks, of groups that share, and of parameters that are stored no more."""
        return {"blocks": self._blocks, "groups": len(self._groups), "parameters_saved": self._saved}

    @staticmethod
    def _weights(size: int, init: Literal["mean", "importance"] | int) -> list[float]:
        """Return the share of each block of a group in what it starts from."""
        if isinstance(init, int):
            return [float(i == min(init, size - 1)) for i in range(size)]
        return [1.0 / size] * size


def _best(group: list[Block], influence: Mapping[str, float]) -> int:
    return max(range(len(group)), key=lambda i: influence[group[i].path])
