"""Movement pruning of attention heads and feed-forward units, which are then physically removed."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from ..core.config import StrictModel
from ..core.families import Block, Family, blocks_of, head_count, require_removable_heads, unit_count, width_in
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..core.schedule import Schedule
from ..modules.gate import ColumnGate
from ..modules.parametrizations import attach, find
from ..modules.shrink import keep_heads_, keep_units_
from ..ops.masks import keep_top


class MovementConfig(StrictModel):
    """Settings of movement pruning."""

    heads: float = Field(0.0, ge=0, lt=1, description="Share of all attention heads to remove.")
    ffn: float = Field(0.0, ge=0, lt=1, description="Share of all feed-forward units to remove.")
    schedule: Schedule = Field(default_factory=Schedule, description="How the removed share grows over the stage.")
    score_learning_rate: float = Field(0.01, gt=0, description="Learning rate of the scores (Sanh 2020: 1e-2).")
    scope: Literal["model", "layer"] = Field(
        "model", description="model: all layers compete, each keeps as many as its scores say; layer: the same share."
    )
    round_to: int = Field(8, ge=1, description="Units kept per layer are a multiple of this; kernels like it.")

    @model_validator(mode="after")
    def _removes_something(self) -> MovementConfig:
        if self.heads == 0 and self.ffn == 0:
            raise ValueError("set heads or ffn (or both) to the share to remove; with both at 0 nothing would change")
        return self


@register
class Movement(Method[MovementConfig]):
    """Learns, while training, which heads and units the task can spare, and slices them out at the end."""

    info = MethodInfo(
        name="movement",
        title="Movement pruning",
        summary="Scores trained by straight-through gradients decide which heads and FFN units are sliced out.",
        category=Category.PRUNING,
        phase=Phase.STRUCTURE,
        papers=("https://arxiv.org/abs/2005.07683", "https://arxiv.org/abs/2109.04838"),
        needs=Needs(training=True),
        examples={"heads": {"heads": 0.5}, "ffn": {"ffn": 0.5}},
    )
    Config = MovementConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Put an open gate on the columns of every attention output and feed-forward down projection."""
        self._family: Family = ctx.family
        blocks = blocks_of(model, ctx.family)
        if self.config.heads:
            require_removable_heads(blocks)
        self._before = _counts(model, blocks)
        for path, size in self._gated(blocks):
            columns = width_in(model.get_submodule(path))
            attach(model, path, ColumnGate(columns // size, size))
        return [path for path, _ in self._gated(blocks)]

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Close as many gates, lowest scores first, as the schedule wants by now."""
        strength = self.config.schedule(fraction)
        blocks = blocks_of(model, self._family)
        if self.config.heads:
            self._set_masks(model, [b.output for b in blocks], 1 - strength * self.config.heads, 1)
        if self.config.ffn:
            self._set_masks(model, [b.down for b in blocks], 1 - strength * self.config.ffn, self.config.round_to)

    def settled(self, fraction: float) -> bool:
        """Say whether the schedule has reached its end."""
        return fraction >= self.config.schedule.end

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the scores, with their own learning rate and no weight decay."""
        scores = [find(model, path, ColumnGate).scores for path, _ in self._gated(blocks_of(model, self._family))]
        return [{"params": scores, "lr": self.config.score_learning_rate, "weight_decay": 0.0}]

    def finalize(self, model: nn.Module) -> None:
        """Slice closed heads and units out of the projections around them; the gates go with the layers replaced."""
        for block in blocks_of(model, self._family):
            if self.config.heads:
                keep_heads_(model, block, find(model, block.output, ColumnGate).mask)
            if self.config.ffn:
                keep_units_(model, block, find(model, block.down, ColumnGate).mask)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return heads and feed-forward units before and after, and after by layer."""
        after = _counts(model, blocks_of(model, self._family))
        numbers: dict[str, float] = {}
        for name in ("heads", "units"):
            numbers[f"{name}_before"] = sum(self._before[name])
            numbers[f"{name}_after"] = sum(after[name])
            numbers |= {f"layer{i}_{name}": count for i, count in enumerate(after[name])}
        return numbers

    def _gated(self, blocks: list[Block]) -> list[tuple[str, int]]:
        heads = [(b.output, b.head_size) for b in blocks] if self.config.heads else []
        units = [(b.down, 1) for b in blocks] if self.config.ffn else []
        return heads + units

    @torch.no_grad()
    def _set_masks(self, model: nn.Module, paths: list[str], density: float, multiple: int) -> None:
        gates = [find(model, path, ColumnGate) for path in paths]
        masks = keep_top([g.scores for g in gates], density, multiple=multiple, per_tensor=self.config.scope == "layer")
        for gate, mask in zip(gates, masks, strict=True):
            gate.mask.copy_(mask)


def _counts(model: nn.Module, blocks: list[Block]) -> dict[str, list[int]]:
    """Return heads and feed-forward units per layer, read off the shapes."""
    return {"heads": [head_count(model, b) for b in blocks], "units": [unit_count(model, b) for b in blocks]}
