"""8-bit weights for linear layers and embeddings, stored in 8 bits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from ..core.config import StrictModel
from ..core.families import output_layers
from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.registry import register
from ..core.targets import select
from ..modules.packed import pack_, refuse_shared
from ..modules.parametrizations import attach, detach, find
from ..modules.rounding import RoundedWeight


class QuantizeWeightsConfig(StrictModel):
    """Settings of weight quantization."""

    bits: Literal[8] = Field(8, description="Bits per weight.")
    targets: list[str] | None = Field(
        None,
        description="Module paths, re:<regex>, or class names (Linear, Embedding); default: every linear layer and "
        "embedding but the one that gives the logits.",
    )
    ignore: list[str] = Field(default_factory=list, description="Modules to leave alone, in the same notation.")


@register
class QuantizeWeights(Method[QuantizeWeightsConfig]):
    """Rounds each row of a weight to 8 bits around zero, one 16-bit scale per row (per channel, symmetric)."""

    info = MethodInfo(
        name="quantize_weights",
        title="Weight quantization",
        summary="Linear layers and embeddings in 8 bits per weight, symmetric, one scale per channel.",
        category=Category.QUANTIZATION,
        phase=Phase.QUANT,
        papers=("https://arxiv.org/abs/2004.09602",),
    )
    Config = QuantizeWeightsConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Wrap every target, switched off: training before this point is not slowed or changed."""
        self._paths = self._select(model)
        for path in self._paths:
            refuse_shared(model, path)
            attach(model, path, RoundedWeight(self.config.bits))
        return self._paths

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Switch the rounding on at the end of the stage, so that what is evaluated is what will be stored."""
        for path in self._paths:
            find(model, path, RoundedWeight).on.fill_(fraction >= 1.0)

    def finalize(self, model: nn.Module) -> None:
        """Store the targets packed."""
        for path in self._paths:
            detach(model, path, RoundedWeight)
            pack_(model, path)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the number of layers quantized and the weights in them."""
        weights = sum(model.get_submodule(path).weight.numel() for path in self._paths)  # type: ignore[operator,misc]
        return {"layers": len(self._paths), "weights": weights, "bits": self.config.bits}

    def _select(self, model: nn.Module) -> list[str]:
        layers = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)]
        if self.config.targets is None:
            keep = output_layers(model)
            layers = [(p, m) for p, m in layers if p not in keep]
        return [p for p, _ in select(layers, self.config.targets, self.config.ignore, "quantize_weights.targets")]
