"""Depth pruning: whole transformer blocks are dropped, and what is left is a shallower stock model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.families import Family, Stack
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..modules.depth import (
    Skip,
    block_influence,
    droppable_stacks,
    keep_blocks_,
    make_skippable_,
    restore_,
)

_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(gt=0, lt=1)]


class LayersConfig(StrictModel):
    """Settings of depth pruning."""

    keep: _Count | _Share = Field(
        0.5, description="Blocks to keep: a number, or a share below 1; of each stack, where a model has several."
    )
    choose: Literal["every_other", "top", "bottom", "importance"] = Field(
        "importance",
        description="Which blocks go: every_other: those between evenly spaced ones, the first stays; top: the last "
        "ones; bottom: the first ones (Sajjad 2023); importance: those that change the hidden state least on "
        "calibration data, by 1 - cosine similarity (block influence, Men 2024, eq. 1).",
    )


@register
class Layers(Method[LayersConfig]):
    """Drops blocks at once, or skips them from the first step of a training stage on and drops them at its end."""

    info = MethodInfo(
        name="layers",
        title="Depth pruning",
        summary="Whole blocks are dropped: every other, from the top or bottom, or those of least influence.",
        category=Category.PRUNING,
        phase=Phase.STRUCTURE,
        papers=("https://arxiv.org/abs/2004.03844", "https://arxiv.org/abs/2403.03853"),
        alone=True,  # the blocks that stay get other paths
    )
    Config = LayersConfig

    @property
    def needs(self) -> Needs:
        """Only importance is measured, and thus needs data."""
        return Needs(calibration=self.config.choose == "importance")

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Choose the blocks to drop, and let them be skipped."""
        self._family: Family = ctx.family
        self._stacks = droppable_stacks(model, ctx.family)
        self._depths = [stack.depth(model) for stack in self._stacks]
        self._choose(model, {})
        if not self._skips:
            raise TargetError(
                f"keep: {self.config.keep} leaves every block of {' + '.join(map(str, self._depths))}; "
                f"{f'only {self._step} adjacent blocks can go together, and ' if self._step > 1 else ''}one has to stay"
            )
        return list(self._skips)

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Measure the influence of every block, and choose anew."""
        paths = [f"{s.path}.{i}" for s, n in zip(self._stacks, self._depths, strict=True) for i in range(n)]
        self._choose(model, block_influence(model, paths, batches))

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Skip the chosen blocks as soon as the stage has begun, so that it trains what will be left."""
        for skip in self._skips.values():
            skip.on = fraction > 0

    def finalize(self, model: nn.Module) -> None:
        """Drop the chosen blocks; the config then says how many are left."""
        for path in self._skips:
            restore_(model, path)
        for stack, keep in zip(self._stacks, self._kept, strict=True):
            keep_blocks_(model, self._family, stack, keep)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the number of blocks before and after, and for each of the former whether it is still there."""
        kept = [i in keep for keep, n in zip(self._kept, self._depths, strict=True) for i in range(n)]
        return {
            "blocks_before": sum(self._depths),
            "blocks_after": sum(kept),
            **{f"block{i}_kept": int(stays) for i, stays in enumerate(kept)},
        }

    @property
    def _step(self) -> int:
        return self._family.depth.step

    def _choose(self, model: nn.Module, influence: Mapping[str, float]) -> None:
        """Set the blocks each stack keeps, and put switches on the others."""
        for path in getattr(self, "_skips", {}):
            restore_(model, path)
        self._kept = [self._of(stack, n, influence) for stack, n in zip(self._stacks, self._depths, strict=True)]
        self._skips: dict[str, Skip] = {
            f"{stack.path}.{i}": make_skippable_(model, f"{stack.path}.{i}", self._family)
            for stack, n, keep in zip(self._stacks, self._depths, self._kept, strict=True)
            for i in range(n)
            if i not in keep
        }

    def _of(self, stack: Stack, depth: int, influence: Mapping[str, float]) -> list[int]:
        """Return the indices of the blocks to keep of one stack."""
        units = [range(i, min(i + self._step, depth)) for i in range(0, depth, self._step)]
        keep = self.config.keep
        wanted = keep * len(units) if isinstance(keep, float) else keep / self._step
        number = min(len(units), max(1, round(wanted)))
        scores = [sum(influence.get(f"{stack.path}.{i}", 0.0) for i in unit) for unit in units]
        chosen = self._rank(scores, number)
        return [i for u in sorted(chosen) for i in units[u]]

    def _rank(self, influence: list[float], number: int) -> list[int]:
        """Return the indices of `number` units to keep."""
        total = len(influence)
        if self.config.choose == "every_other":
            return [i * total // number for i in range(number)]
        first = [0] if self._family.depth.first_stays else []
        rest = range(len(first), total)
        ranked = {
            "top": list(rest),
            "bottom": list(reversed(rest)),
            "importance": sorted(rest, key=lambda i: -influence[i]),
        }[self.config.choose]
        return (first + ranked)[:number]
