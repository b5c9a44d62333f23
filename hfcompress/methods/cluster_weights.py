"""Weights that share values: k-means codebooks, trained on when there is training (Deep Compression)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.progress import track
from ..core.registry import register
from ..modules.clustered import (
    count_clustered,
    gets_smaller,
    refuse_uncodable,
    start_clustered_,
    store_clustered_,
    words_group,
    wrap_clustered,
)
from ..modules.packable import packable
from ..modules.packed import is_table
from ..modules.ties import sharers
from ..ops.codebooks import Codebook

Clusters = Literal[2, 4, 8, 16, 32, 64, 128, 256]


class ClusterWeightsConfig(StrictModel):
    """Settings of weight clustering."""

    clusters: Clusters = Field(16, description="Values a weight may take: 2 to 256, stored in 1 to 8 bits.")
    embedding_clusters: Clusters | None = Field(None, description="Values in embedding tables; default: as `clusters`.")
    rows: int | None = Field(
        64, ge=1, description="Rows (output channels, table entries) that share a codebook; null: the whole layer does."
    )
    group_size: int | None = Field(None, ge=1, description="Columns that share a codebook; default: whole rows do.")
    init: Literal["linear", "kmeans++"] = Field(
        "linear",
        description="Where k-means starts: linear: evenly between the least and the largest weight (Han 2016); "
        "kmeans++: at weights drawn far from each other (Arthur 2007).",
    )
    start: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Fraction of a training stage at which weights are clustered; from then on only the shared values "
        "train.",
    )
    centroid_learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the shared values; default: that of the weights."
    )
    targets: list[str] | None = Field(
        None,
        description="Module paths, re:<regex>, or class names (Linear, Embedding, Conv1D, Conv2d); default: every such "
        "layer but the one that gives the logits.",
    )
    ignore: list[str] = Field(default_factory=list, description="Modules to leave alone, in the same notation.")

    def book(self, embedding: bool) -> Codebook:
        """Return the codebook of a layer."""
        clusters = self.embedding_clusters if embedding and self.embedding_clusters else self.clusters
        return Codebook(clusters.bit_length() - 1, rows=self.rows, columns=self.group_size)


@register
class ClusterWeights(Method[ClusterWeightsConfig]):
    """Replaces every weight by the nearest of a few values found by k-means; zeros of pruned layers stay zero."""

    info = MethodInfo(
        name="cluster_weights",
        title="Weight clustering",
        summary="Weights share 2 to 256 values found by k-means, per layer or block; the values train on if there is "
        "training.",
        category=Category.SHARING,
        phase=Phase.QUANT,
        learns_storage=True,
        papers=("https://arxiv.org/abs/1510.00149",),
    )
    Config = ClusterWeightsConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Wrap every target, switched off; layers whose weights are tied count once and share their values.

        Layers whose codes and codebooks would take as much as their weight stay as they are. Raises TargetError when
        that is all of them, and for a layer that can't be packed or is packed in few bits already.
        """
        self._seed = ctx.seed
        self._groups: dict[str, list[str]] = {}
        self._whole: list[str] = []
        seen: set[int] = set()
        for path, _ in packable(model, self.config.targets, self.config.ignore, self.info.name):
            if id(model.get_submodule(path)) not in seen:
                group = sharers(model, path)
                seen |= {id(module) for _, module in group}
                table = any(is_table(module) for _, module in group)
                book = self.config.book(table)
                refuse_uncodable(path, model.get_submodule(path), book)
                if gets_smaller(model.get_submodule(path), book):
                    self._groups[path] = wrap_clustered(model, path, book)
                else:
                    self._whole.append(path)
        if self._whole and not self._groups:
            raise TargetError(
                f"cluster_weights: codes and codebooks would take more than the weights, in all {len(self._whole)} "
                f"layers ({', '.join(self._whole[:3])} …): let more weights share a codebook (`rows`, `group_size`), "
                "or set `clusters` lower"
            )
        return list(self._groups)

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Cluster once, after `start` of the stage and at least one step."""
        if self.settled(fraction):
            for paths in self._groups.values():
                start_clustered_(model, paths, self.config.init, self._seed)

    def settled(self, fraction: float) -> bool:
        """Say whether weights are clustered."""
        return fraction > 0 and fraction >= self.config.start

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the shared values, without weight decay."""
        return [words_group(model, self._groups, self.config.centroid_learning_rate)]

    def finalize(self, model: nn.Module) -> None:
        """Store codes and codebooks, without the zeros of pruned layers."""
        for path in track(list(self._groups)):
            store_clustered_(model, self._groups[path])

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the layers clustered, their weights, the bits of each before entropy coding, and layers left whole."""
        return count_clustered(model, list(self._groups)) | {"layers_left_whole": len(self._whole)}
