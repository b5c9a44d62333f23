"""Quantization-aware training with learned step sizes, for weights and activations, down to ternary weights."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core.config import StrictModel
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..modules.matrix import as_matrix, stored
from ..modules.packable import packable, unshared
from ..modules.packed import is_table, pack_, weight_matrix
from ..modules.parametrizations import attach, detach, find
from ..modules.sparse import pack_sparse_
from ..modules.steps import LearnedSteps
from ..ops.quantization import Grid

Bits = Literal[8, 6, 4, 3, 2, "ternary"]


class QATConfig(StrictModel):
    """Settings of quantization-aware training; TernaryBERT is `bits: ternary` with `distill` in the same stage."""

    bits: Bits = Field(8, description="Bits per weight; ternary takes 1.6.")
    embedding_bits: Bits | None = Field(None, description="Bits in embedding tables; default: as `bits`.")
    activation_bits: Literal[8, 4, 2] | None = Field(
        8,
        description="Bits of what linear layers and convolutions read, one learned step per layer; null: activations "
        "stay float.",
    )
    group_size: int | None = Field(None, ge=1, description="Columns that share a step; default: a row (channel) does.")
    start: float = Field(
        0.1, ge=0, lt=1, description="Fraction of the stage at which rounding is switched on, by ranges seen till then."
    )
    step_learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the steps; default: that of the weights."
    )
    targets: list[str] | None = Field(
        None,
        description="Module paths, re:<regex>, or class names (Linear, Embedding, Conv1D, Conv2d); default: every such "
        "layer but the one that gives the logits.",
    )
    ignore: list[str] = Field(default_factory=list, description="Modules to leave alone, in the same notation.")

    def grid(self, embedding: bool) -> Grid:
        """Return the grid for a layer."""
        bits = self.embedding_bits if embedding and self.embedding_bits is not None else self.bits
        return Grid(bits, group_size=self.group_size)


@register
class QAT(Method[QATConfig]):
    """Trains through the rounding of weights and activations, so that what was trained is what is stored and run."""

    info = MethodInfo(
        name="qat",
        title="Quantization-aware training",
        summary="Weights (8 bits to ternary) and activations are rounded while training, with learned steps (LSQ).",
        category=Category.QUANTIZATION,
        phase=Phase.QUANT,
        learns_storage=True,
        papers=("https://arxiv.org/abs/1902.08153", "https://arxiv.org/abs/2009.12812"),
        needs=Needs(training=True),
    )
    Config = QATConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Wrap every target, switched off, and let all but tables follow the range of their inputs.

        Layers that were pruned before train without their zeros, which stay. Raises TargetError for one in few bits
        already, shared, or of a class that can't be packed.
        """
        self._handles: list[RemovableHandle] = []
        self._paths = self._select(model)
        for path in self._paths:
            module = model.get_submodule(path)
            bits = None if is_table(module) else self.config.activation_bits
            grid = self.config.grid(is_table(module))
            wrapper = attach(model, path, LearnedSteps(weight_matrix(module), grid, bits), as_matrix=True)
            if bits is not None:
                self._handles.append(module.register_forward_pre_hook(_rounding(wrapper)))
        return self._paths

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Switch rounding on once, after `start` of the stage and at least one step."""
        if fraction <= 0 or fraction < self.config.start:
            return
        for path in self._paths:
            wrapper = find(model, path, LearnedSteps)
            if not wrapper.on:
                wrapper.start(self._weight(model, path))

    def settled(self, fraction: float) -> bool:
        """Say whether rounding is on."""
        return fraction > 0 and fraction >= self.config.start

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the steps, without weight decay."""
        wrappers = [find(model, path, LearnedSteps) for path in self._paths]
        steps = [p for w in wrappers for p in ([w.step] if w.input_bits is None else [w.step, w.input_step])]
        rate = {} if self.config.step_learning_rate is None else {"lr": self.config.step_learning_rate}
        return [{"params": steps, "weight_decay": 0.0, **rate}]

    def finalize(self, model: nn.Module) -> None:
        """Store codes, steps and input grids as they were trained."""
        for handle in self._handles:
            handle.remove()
        for path in self._paths:
            wrapper = find(model, path, LearnedSteps)
            quantized = wrapper.quantized(self._weight(model, path))
            detach(model, path, LearnedSteps)
            pack_(model, path, quantized=quantized)
            pack_sparse_(model, path)
            if wrapper.rounds_inputs:
                packed: Any = model.get_submodule(path)
                packed.set_inputs(wrapper.used(wrapper.input_step), int(wrapper.input_zero), wrapper.input_bits or 8)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return layers, their weights, bits per weight on disk, and how many read numbers on a grid, and floats."""
        modules: list[Any] = [model.get_submodule(path) for path in self._paths]
        weights = sum(m.rows * m.columns for m in modules)
        grids = sum(getattr(m, "input_bits", None) is not None for m in modules)
        size = sum(p.nbytes for m in modules for name, p in m.named_parameters() if name.startswith("weight"))
        return {
            "layers": len(modules),
            "weights": weights,
            "bits_per_weight": round(8 * size / weights, 4),
            "layers_with_quantized_inputs": grids,
            "layers_with_float_inputs": sum(not is_table(m) for m in modules) - grids,
        }

    def _weight(self, model: nn.Module, path: str) -> Tensor:
        """Return the weight under the wrappers, as it was trained, (rows, columns)."""
        module = model.get_submodule(path)
        return as_matrix(module, stored(module)).detach()

    def _select(self, model: nn.Module) -> list[str]:
        chosen = packable(model, self.config.targets, self.config.ignore, self.info.name)
        paths, self.left_out = unshared(model, chosen, named=self.config.targets is not None)
        return paths


def _rounding(wrapper: LearnedSteps) -> Any:
    return lambda module, inputs: (wrapper.round_inputs(inputs[0]), *inputs[1:])
