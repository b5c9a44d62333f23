"""GPTQ: weights rounded to few bits one column after the other, the later ones making up for the earlier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from ..core.errors import TargetError
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..core.sparsity import Calibrated
from ..core.targets import select
from ..modules.blockwise import require_reached, walk_
from ..modules.chains import LINEAR, layers_of, target_layers
from ..modules.packable import obstacle, refuse_obstacles, without_obstacles
from ..modules.packed import PackedEmbedding, pack_, weight_matrix
from ..modules.sparse import pack_sparse_
from ..modules.storage import Packed
from ..modules.ties import sharers
from ..ops.moments import Gram
from ..ops.obs import inverse_factor, quantize_in_order
from ..ops.quantization import Grid, Quantized

Bits = Literal[8, 6, 4, 3, 2, "ternary"]
_EMBEDDINGS = (nn.Embedding, PackedEmbedding)


class GPTQConfig(Calibrated):
    """Settings of GPTQ."""

    bits: Bits = Field(4, description="Bits per weight; ternary takes 1.6.")
    group_size: int | None = Field(128, ge=1, description="Columns that share a scale; null: one scale per row.")
    symmetric: bool = Field(True, description="Levels lie evenly around zero; false adds a zero point to each scale.")
    clip: Literal["max", "mse"] = Field(
        "mse", description="max: the levels span all weights; mse: they span what leaves the least squared error."
    )
    act_order: bool = Field(False, description="Round the columns with the largest inputs first; makes groups static.")
    static_groups: bool = Field(False, description="Fit all scales beforehand, not when a group's turn comes.")
    damping: float = Field(
        0.01, gt=0, description="Share of the mean diagonal that is added to the Hessian's diagonal."
    )
    embedding_bits: Bits | None = Field(
        None, description="Round embedding tables too, to the nearest level in so many bits; null: leave them."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> GPTQConfig:
        for bits in (self.bits, self.embedding_bits or self.bits):
            self.grid(bits)
        return self

    def grid(self, bits: Bits) -> Grid:
        """Return the grid for layers in `bits`; ValueError when the settings do not fit together."""
        return Grid(bits, self.symmetric, self.group_size)


@register
class GPTQ(Method[GPTQConfig]):
    """Rounds each layer's columns in turn and spreads every rounding error over the columns still to come."""

    info = MethodInfo(
        name="gptq",
        title="GPTQ",
        summary="One-shot: few-bit weights in groups, each column's rounding error made up for by later columns.",
        category=Category.QUANTIZATION,
        phase=Phase.QUANT,
        papers=("https://arxiv.org/abs/2210.17323",),
        needs=Needs(calibration=True),
    )
    Config = GPTQConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Choose the layers; TargetError for one whose weight is in few bits already, or shared with another layer."""
        self._linear, self._embeddings = self._select(model)
        return self._linear + self._embeddings

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Quantize and pack, embeddings first, then block by block."""
        batches = list(batches)
        require_reached(model, batches, self._linear)
        for path in self._embeddings:
            pack_(model, path, self._grid(path), clip=self.config.clip)

        def compress(paths: list[str], inputs: Gram) -> None:
            order = inputs.matrix.diagonal().argsort(descending=True, stable=True) if self.config.act_order else None
            gram = inputs.matrix if order is None else inputs.matrix[order][:, order]
            factor = inverse_factor(gram, self.config.damping)
            for path in paths:
                pack_(model, path, quantized=self._quantized(model.get_submodule(path), factor, order))

        walk_(model, batches, self._linear, Gram, compress, self.info.title)

    def assume(self, model: nn.Module) -> None:
        """Pack rounded to nearest: that takes the same bits."""
        for path in self._linear + self._embeddings:
            pack_(model, path, self._grid(path))

    def finalize(self, model: nn.Module) -> None:
        """Leave out the zeros of layers that were pruned before, where that is smaller still."""
        for path in self._linear:
            pack_sparse_(model, path)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the number of layers quantized, the weights in them, and their bits per weight on disk."""
        modules: list[Any] = [model.get_submodule(path) for path in self._linear + self._embeddings]
        weights = sum(m.rows * m.columns for m in modules)
        stored = sum(p.nbytes for m in modules for name, p in m.named_parameters() if name != "bias")
        return {"layers": len(modules), "weights": weights, "bits_per_weight": round(8 * stored / weights, 4)}

    def _grid(self, path: str) -> Grid:
        bits = self.config.bits
        return self.config.grid((self.config.embedding_bits or bits) if path in self._embeddings else bits)

    def _quantized(self, module: nn.Module, factor: Tensor, order: Tensor | None) -> Quantized:
        config = self.config
        return quantize_in_order(
            weight_matrix(module).float(),
            factor,
            config.grid(config.bits),
            clip=config.clip,
            static_groups=config.static_groups,
            order=order,
        )

    def _select(self, model: nn.Module) -> tuple[list[str], list[str]]:
        layers = target_layers(model, self.config.targets, (*LINEAR, *_EMBEDDINGS), self.info.name)
        if self.config.targets is None and self.config.embedding_bits is not None:
            layers += without_obstacles(model, layers_of(model, _EMBEDDINGS), obstacle)
        chosen = select(layers, self.config.targets, self.config.ignore, f"{self.info.name}.targets")
        refuse_obstacles(model, chosen, obstacle)
        linear: list[str] = []
        tables: list[str] = []
        for path, module in chosen:
            table = isinstance(module, _EMBEDDINGS)
            weight: Any = module.weight
            if (isinstance(module, Packed) and module.grid is not None) or not weight.is_floating_point():
                raise TargetError(f"{path}: its weight is in few bits already; add it to `ignore`")
            group = sharers(model, path)
            if not table and len(group) > 1:
                raise TargetError(f"{path}: its weight is shared with {group[1][0]}; add it to `ignore`")
            refuse_obstacles(model, group, obstacle)
            (tables if table else linear).append(path)
        return linear, tables
