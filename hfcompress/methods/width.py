"""Width pruning: channels of the residual stream leave every layer that reads or writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.families import blocks_of
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..modules.width import activations, keep_channels_, magnitudes, sensitivities, stream_axes, stream_norms
from ..modules.width import stream_width as width_of
from ..ops.masks import keep_highest

_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(gt=0, lt=1)]


class WidthConfig(StrictModel):
    """Settings of width pruning."""

    keep: _Count | _Share = Field(0.75, description="Channels to keep: a number, or a share below 1.")
    round_to: int = Field(8, ge=1, description="A share is rounded to a multiple of this; kernels like it.")
    importance: Literal["activation", "taylor"] = Field(
        "activation",
        description="What a channel is worth on calibration data. activation: mean |h| of hidden states over tokens "
        "and layers (Muralidharan 2024, section 2.2); taylor: |h * dL/dh| summed over tokens and the outputs of norms "
        "(Molchanov 2019), with the data's labels where it has them.",
    )
    examples: int = Field(512, ge=1, description="Calibration examples to read, where the caller provides that many.")


@register
class WidthPruning(Method[WidthConfig]):
    """Removes the channels of the residual stream that carry the least (Muralidharan 2024); train afterwards."""

    info = MethodInfo(
        name="width",
        title="Width pruning",
        summary="One-shot: channels of the hidden state leave embeddings, norms, projections and head; train after it.",
        category=Category.PRUNING,
        phase=Phase.STRUCTURE,
        papers=("https://arxiv.org/abs/2407.14679", "https://arxiv.org/abs/1906.10771"),
        needs=Needs(calibration=True),
        alone=True,
    )
    Config = WidthConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Find what the residual stream runs through; TargetError when no channel would go."""
        self._seed, self._family = ctx.seed, ctx.family
        self._blocks = blocks_of(model, ctx.family)
        axes = stream_axes(model, ctx.family)
        self._before = width_of(model, self._blocks)
        self._left = self._wanted(self._before)
        if self._left >= self._before:
            raise TargetError(
                f"width: keep {self.config.keep} leaves all {self._before} channels; lower it or round_to"
            )
        return list(dict.fromkeys(axis.path for axis in axes))

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Remove the channels that are worth the least, in place."""
        if self.config.importance == "taylor":
            scores = sensitivities(model, stream_norms(model, self._family), batches, self._seed)
        else:
            scores = activations(model, [block.path for block in self._blocks], batches)
        keep_channels_(model, stream_axes(model, self._family), keep_highest(scores, self._left))

    def finalize(self, model: nn.Module) -> None:
        """Without calibration, as in a plan, the channels of the smallest weights go."""
        if width_of(model, self._blocks) > self._left:
            axes = stream_axes(model, self._family)
            keep_channels_(model, axes, keep_highest(magnitudes(model, axes, self._before), self._left))

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the channels before and after."""
        return {"width_before": self._before, "width_after": width_of(model, self._blocks)}

    def _wanted(self, width: int) -> int:
        keep, step = self.config.keep, self.config.round_to
        return keep if isinstance(keep, int) else max(1, round(keep * width / step)) * step
