"""One-shot removal of feed-forward units by Fisher information, with what is left refitted on calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field
from torch import Tensor, nn

from ..core.families import blocks_of, unit_count
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..core.removal import RemovalConfig
from ..modules.removal import Columns, Removal
from ..modules.shrink import keep_units_


class FfnConfig(RemovalConfig):
    """Settings of one-shot feed-forward pruning."""

    round_to: int = Field(8, ge=1, description="Units kept per layer are a multiple of this; kernels like it.")


@register
class Ffn(Method[FfnConfig]):
    """Removes the feed-forward units whose absence costs the loss the least (Kwon 2022) in one step."""

    info = MethodInfo(
        name="ffn",
        title="One-shot feed-forward pruning",
        summary="One-shot: FFN units of least Fisher information are sliced out, the rest refitted to make up.",
        category=Category.PRUNING,
        phase=Phase.STRUCTURE,
        papers=("https://arxiv.org/abs/2204.09656", "https://arxiv.org/abs/2302.04089"),
        needs=Needs(calibration=True),
        examples={"": {"remove": 0.5}},
    )
    Config = FfnConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Wrap the narrowing projection of every feed-forward layer."""
        self._blocks = blocks_of(model, ctx.family)
        self._before = [unit_count(model, block) for block in self._blocks]
        layers = [Columns(block.down, 1, block.up) for block in self._blocks]
        self._removal = Removal(model, layers, self.config, multiple=self.config.round_to, seed=ctx.seed)
        return [block.down for block in self._blocks]

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Choose the units and refit the projections."""
        self._removal.observe(model, batches, self.info.title)

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Show the model without the units from the first step on."""
        self._removal.switch(model, fraction > 0)

    def finalize(self, model: nn.Module) -> None:
        """Slice the units out."""
        for block, keep in zip(self._blocks, self._removal.bake_(model), strict=True):
            keep_units_(model, block, keep)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return units before and after, and after by layer."""
        after = [unit_count(model, block) for block in self._blocks]
        numbers: dict[str, float] = {"units_before": sum(self._before), "units_after": sum(after)}
        return numbers | {f"layer{i}_units": count for i, count in enumerate(after)}
