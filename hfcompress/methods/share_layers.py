"""Cross-layer parameter sharing: neighbouring blocks use one set of weights (ALBERT)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.families import Block, blocks_of
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..modules.depth import block_influence
from ..modules.sharing import (
    attach_shared,
    chosen_groups,
    finish_sharing_,
    groups_of,
    shared_names,
    start_sharing_,
)

_Index = Annotated[int, Field(ge=0)]


class ShareLayersConfig(StrictModel):
    """Settings of layer sharing."""

    group: int | Literal["all"] | list[Annotated[list[_Index], Field(min_length=2)]] = Field(
        "all",
        description="Neighbouring blocks that share one set of weights: 2 for pairs; all: those of a stack do; or "
        "groups as lists of block numbers from 0, such as [[0, 1], [2, 3, 4, 5]]: neighbours or not, of one stack "
        "each; blocks in no list keep their own.",
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

    @model_validator(mode="after")
    def _each_block_once(self) -> ShareLayersConfig:
        if isinstance(self.group, list):
            if not self.group:
                raise ValueError("group: an empty list shares nothing; give lists of block numbers, or all")
            numbers = [i for group in self.group for i in group]
            if twice := sorted({i for i in numbers if numbers.count(i) > 1}):
                raise ValueError(f"group: block {twice[0]} is listed twice; a block shares with one group only")
        return self


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
        self._blocks = len(blocks_of(model, ctx.family))
        self._groups = self._find(model, ctx)
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

    def _find(self, model: nn.Module, ctx: Context) -> list[list[Block]]:
        """Return the groups; TargetError where there is none, or a block that is not there."""
        group = self.config.group
        if isinstance(group, list):
            try:
                return chosen_groups(model, ctx.family, group)
            except TargetError as error:
                raise TargetError(f"share_layers.group: {error}") from error
        if group != "all" and group < 2:
            raise TargetError("share_layers.group: one block shares nothing; give 2 or more, or all")
        groups = groups_of(model, ctx.family, None if group == "all" else group)
        if not groups:
            raise TargetError(f"share_layers: none of this model's {self._blocks} blocks has a neighbour")
        return groups

    @staticmethod
    def _weights(size: int, init: Literal["mean", "importance"] | int) -> list[float]:
        """Return the share of each block of a group in what it starts from."""
        if isinstance(init, int):
            return [float(i == min(init, size - 1)) for i in range(size)]
        return [1.0 / size] * size


def _best(group: list[Block], influence: Mapping[str, float]) -> int:
    return max(range(len(group)), key=lambda i: influence[group[i].path])
