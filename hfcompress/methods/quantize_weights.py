"""Weights rounded to few bits, from the weights alone, and stored in those bits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.progress import track
from ..core.registry import register
from ..modules.packable import held_weights, packable, refuse_unpackable
from ..modules.packed import Packed, is_table, pack_
from ..modules.packed_parameters import PackedParameter, pack_parameters_
from ..modules.parametrizations import attach, detach, find
from ..modules.rounded_parameters import round_, roundings
from ..modules.rounding import RoundedWeight, rounding_for
from ..modules.sparse import pack_sparse_
from ..modules.ties import sharers
from ..ops.quantization import Grid

Bits = Literal[8, 6, 4, 3, 2, "ternary", "binary"]


class QuantizeWeightsConfig(StrictModel):
    """Settings of weight quantization."""

    bits: Bits = Field(8, description="Bits per weight; ternary takes 1.6, binary 1.")
    embedding_bits: Bits | None = Field(None, description="Bits in embedding tables; default: as `bits`.")
    symmetric: bool = Field(True, description="Levels lie evenly around zero; false adds a zero point to each scale.")
    per: Literal["channel", "group", "tensor"] | None = Field(
        None, description="What shares a scale; default: group when group_size is given, else channel (a row)."
    )
    group_size: int | None = Field(None, ge=1, description="Columns that share a scale; the last group may be shorter.")
    clip: Literal["max", "mse"] = Field(
        "max", description="max: the levels span all weights; mse: they span what leaves the least squared error."
    )
    targets: list[str] | None = Field(
        None,
        description="Module paths, re:<regex>, or class names (Linear, Embedding, Conv1D, Conv2d); default: every such "
        "layer but the one that gives the logits.",
    )
    ignore: list[str] = Field(default_factory=list, description="Modules to leave alone, in the same notation.")

    @model_validator(mode="after")
    def _fits_together(self) -> QuantizeWeightsConfig:
        if (self.per == "group") != (self.group_size is not None) and self.per is not None:
            raise ValueError("`per: group` and `group_size` go together: give both, or only group_size")
        self.grid(False), self.grid(True)
        return self

    def grid(self, embedding: bool) -> Grid:
        """Return the grid for a layer; ValueError when the settings do not fit together."""
        bits = self.embedding_bits if embedding and self.embedding_bits is not None else self.bits
        symmetric = self.symmetric or bits in ("ternary", "binary")
        if bits == self.bits and symmetric != self.symmetric:
            raise ValueError(f"{bits} weights have no zero point: leave out `symmetric: false`")
        return Grid(1 if bits == "binary" else bits, symmetric, self.group_size, self.per == "tensor")


@register
class QuantizeWeights(Method[QuantizeWeightsConfig]):
    """Rounds every weight to the nearest of a few levels, with 16-bit scales per channel, group or tensor."""

    info = MethodInfo(
        name="quantize_weights",
        title="Weight quantization",
        summary="Linear layers, convolutions and embeddings in 8 to 1 bits per weight, rounded to nearest.",
        category=Category.QUANTIZATION,
        phase=Phase.QUANT,
        papers=(
            "https://arxiv.org/abs/2004.09602",
            "https://arxiv.org/abs/1605.04711",
            "https://arxiv.org/abs/1603.05279",
        ),
    )
    Config = QuantizeWeightsConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Wrap every target, switched off: training before this point is not slowed or changed.

        Layers whose weights are tied count once. Raises TargetError for a layer that can't be packed.
        """
        self._grids: dict[str, Grid] = {}
        self._wrapped: list[str] = []  # those of tied layers too
        self._held: dict[str, list[str]] = {}  # names of parameters by the module that keeps them
        seen: set[int] = set()
        held = held_weights(model)
        for path, module in packable(model, self.config.targets, self.config.ignore, self.info.name, held):
            if path in held:
                self._held[path] = held[path]
                for name in held[path]:
                    round_(module, name, self.config.grid(is_table(module)), self.config.clip)
            elif id(model.get_submodule(path)) not in seen:
                group = sharers(model, path)
                seen |= {id(module) for _, module in group}
                self._wrap(model, group)
        return [*self._grids, *self._held]

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Switch the rounding on at the end of the stage, so that what is evaluated is what will be stored."""
        for path in self._wrapped:
            find(model, path, RoundedWeight).on.fill_(fraction >= 1.0)
        for path in self._held:
            for wrapper in roundings(model.get_submodule(path)):
                wrapper.on.fill_(fraction >= 1.0)

    def finalize(self, model: nn.Module) -> None:
        """Store the targets packed, without their zeros where that is smaller still."""
        for path in self._wrapped:
            detach(model, path, RoundedWeight)
        for path in track(list(self._grids)):
            pack_(model, path, self._grids[path], clip=self.config.clip)
            pack_sparse_(model, path)
        self._parameters = [
            packed for path, names in self._held.items() for packed in self._pack_held(model.get_submodule(path), names)
        ]

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the number of layers quantized, the weights in them, and their bits per weight on disk."""
        modules: list[Any] = [*map(model.get_submodule, self._grids), *self._parameters]
        weights = sum(m.rows * m.columns for m in modules)
        stored = sum(p.nbytes for m in modules for name, p in m.named_parameters() if name != "bias")
        return {"layers": len(modules), "weights": weights, "bits_per_weight": round(8 * stored / weights, 4)}

    def _pack_held(self, module: nn.Module, names: list[str]) -> list[PackedParameter]:
        return pack_parameters_(module, names, self.config.grid(is_table(module)), self.config.clip)

    def _wrap(self, model: nn.Module, group: list[tuple[str, nn.Module]]) -> None:
        grid = self.config.grid(any(is_table(module) for _, module in group))
        self._grids[group[0][0]] = grid
        for path, module in {id(m): (p, m) for p, m in reversed(group)}.values():
            _check(path, module, grid)
            attach(model, path, rounding_for(module, grid, self.config.clip))
            self._wrapped.append(path)


def _check(path: str, module: nn.Module, grid: Grid) -> None:
    refuse_unpackable(path, module)
    if isinstance(module, Packed) and not grid.has_zero:
        raise TargetError(f"{path}: its weight is pruned, and binary weights have no zero; add it to `ignore`")
