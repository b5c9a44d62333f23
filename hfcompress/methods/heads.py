"""One-shot removal of attention heads by Fisher information, with what is left refitted on calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ..core.families import Attention, blocks_of, head_count, require_removable_heads
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..core.removal import RemovalConfig
from ..modules.removal import Columns, Removal
from ..modules.shrink import keep_heads_


class HeadsConfig(RemovalConfig):
    """Settings of one-shot head pruning."""


@register
class Heads(Method[HeadsConfig]):
    """Removes the heads whose absence costs the loss the least (Michel 2019, Kwon 2022) in one step."""

    info = MethodInfo(
        name="heads",
        title="One-shot head pruning",
        summary="One-shot: attention heads of least Fisher information are sliced out, the rest refitted to make up.",
        category=Category.PRUNING,
        phase=Phase.STRUCTURE,
        papers=("https://arxiv.org/abs/1905.10650", "https://arxiv.org/abs/2204.09656"),
        needs=Needs(calibration=True),
        examples={"": {"remove": 0.5}},
    )
    Config = HeadsConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Wrap the output projection of every attention."""
        blocks = blocks_of(model, ctx.family)
        require_removable_heads(blocks)
        self._attentions: list[Attention] = [a for b in blocks for a in (b, b.cross) if a is not None]
        self._before = self._counts(model)
        layers = [
            Columns(a.output, a.head_size, (a.query, a.key, a.value, *a.more), attention=True) for a in self._attentions
        ]
        self._removal = Removal(model, layers, self.config, multiple=1, seed=ctx.seed)
        return [a.output for a in self._attentions]

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Choose the heads and refit the projections."""
        self._removal.observe(model, batches, self.info.title)

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Show the model without the heads from the first step on."""
        self._removal.switch(model, fraction > 0)

    def finalize(self, model: nn.Module) -> None:
        """Slice the heads out."""
        for attention, keep in zip(self._attentions, self._removal.bake_(model), strict=True):
            keep_heads_(model, attention, keep)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return heads before and after, and after by layer."""
        after = self._counts(model)
        numbers: dict[str, float] = {"heads_before": sum(self._before), "heads_after": sum(after)}
        return numbers | {f"layer{i}_heads": count for i, count in enumerate(after)}

    def _counts(self, model: nn.Module) -> list[int]:
        return [head_count(model, attention) for attention in self._attentions]
