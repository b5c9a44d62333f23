"""Product quantization of embedding tables: rows cut into short vectors, each one of a few codewords."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.families import direct_weights
from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.progress import track
from ..core.registry import register
from ..core.targets import select
from ..modules.clustered import (
    count_clustered,
    gets_smaller,
    refuse_uncodable,
    start_clustered_,
    store_clustered_,
    words_group,
    wrap_clustered,
)
from ..modules.packable import Layers, obstacle, refuse_obstacles, without_obstacles
from ..modules.ties import sharers
from ..ops.codebooks import Codebook


class ProductQuantizationConfig(StrictModel):
    """Settings of product quantization."""

    dim: int = Field(4, ge=2, description="Neighbouring columns that one code stands for; a divisor of the width.")
    codewords: Literal[16, 32, 64, 128, 256] = Field(
        256, description="Vectors to choose from, for each group of `dim` columns; a code takes 4 to 8 bits."
    )
    start: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Fraction of a training stage at which tables are quantized; from then on their codewords train.",
    )
    codeword_learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the codewords; default: that of the weights."
    )
    targets: list[str] | None = Field(
        None, description="Paths of tables, or re:<regex>; default: every table that gets smaller than in 8 bits."
    )
    ignore: list[str] = Field(default_factory=list, description="Tables to leave alone, in the same notation.")

    @property
    def book(self) -> Codebook:
        """Return the codebook: one for each group of columns, over all rows."""
        return Codebook(self.codewords.bit_length() - 1, self.dim, columns=self.dim)


@register
class ProductQuantization(Method[ProductQuantizationConfig]):
    """Stores a table as codes of codewords that k-means finds for each group of columns; a lookup gathers both."""

    info = MethodInfo(
        name="product_quantization",
        title="Product quantization",
        summary="Embedding tables as codes of short vectors found by k-means; they train on if there is training.",
        category=Category.SHARING,
        phase=Phase.QUANT,
        papers=("https://doi.org/10.1109/TPAMI.2010.57", "https://arxiv.org/abs/1907.05686"),
        examples={"": {"dim": 4, "codewords": 16}},
    )
    Config = ProductQuantizationConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Wrap every table, switched off; a layer whose weight is tied to one follows it."""
        self._seed = ctx.seed
        self._groups: dict[str, list[str]] = {}
        seen: set[int] = set()
        for path in self._select(model):
            if id(model.get_submodule(path)) not in seen:
                seen |= {id(module) for _, module in sharers(model, path)}
                self._groups[path] = wrap_clustered(model, path, self.config.book)
        return list(self._groups)

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Quantize once, after `start` of the stage and at least one step."""
        if self.settled(fraction):
            for paths in self._groups.values():
                start_clustered_(model, paths, "kmeans++", self._seed)

    def settled(self, fraction: float) -> bool:
        """Say whether tables are quantized."""
        return fraction > 0 and fraction >= self.config.start

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the codewords, without weight decay."""
        return [words_group(model, self._groups, self.config.codeword_learning_rate)]

    def finalize(self, model: nn.Module) -> None:
        """Store codes and codewords."""
        for path in track(list(self._groups)):
            store_clustered_(model, self._groups[path])

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the tables quantized, the weights in them, and their bits per weight before entropy coding."""
        return count_clustered(model, list(self._groups))

    def _select(self, model: nn.Module) -> list[str]:
        """Return the tables to act on; TargetError for one that would not get smaller."""
        keep = direct_weights(model)
        tables: Layers = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Embedding) and p not in keep]
        if not tables:
            raise TargetError("product_quantization: this model has no embedding table that is not packed already")
        if self.config.targets is None:
            able = without_obstacles(model, tables, obstacle)
            small = [(p, m) for p, m in able if self._bytes(m) < m.num_embeddings * m.embedding_dim]  # type: ignore[operator]
            if not small:
                raise TargetError(
                    f"product_quantization: no table gets smaller with {self.config.codewords} codewords than in 8 "
                    "bits; set `codewords` lower, or use a method that rounds each weight"
                )
            tables = small
        chosen = select(tables, self.config.targets, self.config.ignore, "product_quantization.targets")
        for path, table in chosen:
            refuse_obstacles(model, sharers(model, path), obstacle)
            refuse_uncodable(path, table, self.config.book)
            if not gets_smaller(table, self.config.book):
                raise TargetError(f"{path}: its codewords would take more bytes than the table; set `codewords` lower")
        return [path for path, _ in chosen]

    def _bytes(self, table: Any) -> int:
        """Return the bytes of codes and codewords."""
        rows, columns, book = table.num_embeddings, table.embedding_dim, self.config.book
        return rows * -(-columns // book.dim) * book.bits // 8 + 2 * book.numel(rows, columns)
