"""SmoothQuant: weights and activations in 8 bits on fixed grids, outliers of activations moved into the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.config import StrictModel
from ..core.errors import FamilyError
from ..core.families import blocks_of, family_of
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..modules.blockwise import observe_all
from ..modules.chains import LINEAR
from ..modules.packable import packable, unshared
from ..modules.packed import pack_, weight_matrix
from ..modules.smoothing import Fold, fold_, norm_folds
from ..modules.sparse import pack_sparse_
from ..ops.smoothing import InputRange, input_grid, smoothing

_TRIAL = 2  # examples on which a fold is tried


class SmoothQuantConfig(StrictModel):
    """Settings of SmoothQuant."""

    alpha: float = Field(0.5, ge=0, le=1, description="How much of the difficulty moves from inputs to weights.")
    ranges: Literal["max", "mse"] = Field(
        "max", description="max: the grid of a layer's inputs spans all seen; mse: what leaves the least squared error."
    )
    targets: list[str] | None = Field(
        None,
        description="Module paths, re:<regex>, or class names (Linear, Embedding, Conv1D, Conv2d); default: every such "
        "layer but the one that gives the logits.",
    )
    ignore: list[str] = Field(default_factory=list, description="Modules to leave alone, in the same notation.")


@register
class SmoothQuant(Method[SmoothQuantConfig]):
    """Static int8: factors per channel go from inputs to weights where a norm or value projection takes them up."""

    info = MethodInfo(
        name="smooth_quant",
        title="SmoothQuant",
        summary="One-shot: 8-bit weights and activations on calibrated grids, outliers moved from inputs to weights.",
        category=Category.QUANTIZATION,
        phase=Phase.QUANT,
        papers=("https://arxiv.org/abs/2211.10438",),
        needs=Needs(calibration=True),
    )
    Config = SmoothQuantConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Choose the layers; TargetError for one in few bits already, shared, or of a class that can't be packed."""
        chosen = packable(model, self.config.targets, self.config.ignore, self.info.name)
        self._paths, self.left_out = unshared(model, chosen, named=self.config.targets is not None)
        self._linear = [path for path in self._paths if isinstance(model.get_submodule(path), LINEAR)]
        return self._paths

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Smooth, then pack every layer and give the linear ones a grid for their inputs."""
        batches = list(batches)
        ranges = observe_all(model, batches, self._linear, InputRange, self.info.title)
        factors = self._smooth(model, batches[0], ranges)
        self._smoothed = len(factors)
        for path in self._paths:
            pack_(model, path)
            if path in ranges:
                s = factors.get(path, ranges[path].low.new_ones(1))
                grid = input_grid(ranges[path], s, 8, search=self.config.ranges == "mse")
                model.get_submodule(path).set_inputs(*grid, 8)  # type: ignore[operator]

    def assume(self, model: nn.Module) -> None:
        """Pack unsmoothed, with a grid of any step for inputs: that takes the same bits."""
        self._smoothed = 0
        for path in self._paths:
            pack_(model, path)
            if path in self._linear:
                model.get_submodule(path).set_inputs(torch.ones(1), 0, 8)  # type: ignore[operator]

    def finalize(self, model: nn.Module) -> None:
        """Leave out the zeros of layers that were pruned before, where that is smaller still."""
        for path in self._paths:
            pack_sparse_(model, path)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the layers packed, the weights in them, and the layers with quantized and with smoothed inputs."""
        modules: list[Any] = [model.get_submodule(path) for path in self._paths]
        return {
            "layers": len(modules),
            "weights": sum(m.rows * m.columns for m in modules),
            "layers_with_quantized_inputs": sum(m.input_bits is not None for m in modules),
            "layers_with_smoothed_inputs": self._smoothed,
        }

    def _smooth(
        self, model: nn.Module, batch: Mapping[str, Tensor], ranges: dict[str, InputRange]
    ) -> dict[str, Tensor]:
        """Fold factors where that leaves the model as it is; return them by the layers that read what was divided."""
        trial = {name: value[:_TRIAL] for name, value in batch.items()}
        factors: dict[str, Tensor] = {}
        for fold in [*_value_folds(model, self._linear), *norm_folds(model, trial, self._linear)]:
            weights = [weight_matrix(model.get_submodule(path)) for path in fold.readers]
            s = smoothing(ranges[fold.readers[0]].largest(), weights, self.config.alpha)
            if fold_(model, fold, s, trial):
                factors |= dict.fromkeys(fold.readers, s)
        return factors


def _value_folds(model: nn.Module, paths: list[str]) -> list[Fold]:
    """Return a fold for each attention whose output projection reads the value projection's rows one to one."""
    try:
        blocks = blocks_of(model, family_of(model))
    except FamilyError:
        return []
    pairs = [(b.value, b.output) for b in blocks if not b.fused and {b.value, b.output} <= set(paths)]
    sizes = {path: weight_matrix(model.get_submodule(path)).shape for pair in pairs for path in pair}
    return [Fold(value, (output,)) for value, output in pairs if sizes[value][0] == sizes[output][1]]
