"""Compositional embeddings: a table of tokens as two small ones, by quotient and remainder of the token's id."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field
from torch import nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.families import base_prefix, direct_weights
from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.registry import register
from ..core.targets import select
from ..modules.hashed import HashedWeight, put_hashed_
from ..modules.matrix import stored
from ..modules.parametrizations import attach, detach, find
from ..modules.ties import refuse_shared


class HashEmbeddingsConfig(StrictModel):
    """Settings of compositional embeddings."""

    buckets: int | None = Field(
        None,
        ge=2,
        description="Rows of the table that a remainder picks from; the other has one for every so many tokens. "
        "Default: the square root of the number of tokens, which makes both smallest.",
    )
    combine: Literal["multiply", "add"] = Field(
        "multiply", description="How a token's two rows make its vector (Shi 2020, section 4)."
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of both tables; default: that of the weights."
    )
    targets: list[str] | None = Field(None, description="Paths of tables, or re:<regex>; default: the table of tokens.")


@register
class HashEmbeddings(Method[HashEmbeddingsConfig]):
    """Fits two small tables to the old one by least squares and uses those; train with it, then or afterwards."""

    info = MethodInfo(
        name="hash_embeddings",
        title="Compositional embeddings",
        summary="The token table becomes two small ones, by quotient and remainder, fitted to it; train after it.",
        category=Category.SHARING,
        phase=Phase.STRUCTURE,
        papers=("https://arxiv.org/abs/1909.02107",),
        alone=True,
    )
    Config = HashEmbeddingsConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Wrap the tables, switched off; TargetError for one that is shared, not plain, or would not get smaller."""
        self._paths = self._select(model, ctx)
        self._rows, self._before = 0, 0
        for path in self._paths:
            refuse_shared(model, path, "two small tables can't stand in for both, so it can't be hashed while tied")
            weight = stored(model.get_submodule(path))
            rows, columns = weight.shape
            buckets = self.config.buckets or math.ceil(math.sqrt(rows))
            if buckets + math.ceil(rows / buckets) >= rows:
                raise TargetError(f"{path}: two tables for its {rows} rows are no smaller; leave out `buckets`")
            self._rows += rows
            self._before += rows * columns
            attach(model, path, HashedWeight(weight, buckets, self.config.combine))
        return self._paths

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Switch to the small tables as soon as the stage has begun."""
        for path in self._paths if fraction > 0 else ():
            wrapper = find(model, path, HashedWeight)
            if not wrapper.on:
                wrapper.start(stored(model.get_submodule(path)).detach())

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the small tables."""
        rate = {} if self.config.learning_rate is None else {"lr": self.config.learning_rate}
        wrappers = [find(model, path, HashedWeight) for path in self._paths]
        return [{"params": [p for w in wrappers for p in (w.quotients, w.remainders)], **rate}]

    def finalize(self, model: nn.Module) -> None:
        """Leave the small tables alone."""
        self._after = 0
        for path in self._paths:
            wrapper = find(model, path, HashedWeight)
            self._after += wrapper.quotients.numel() + wrapper.remainders.numel()
            detach(model, path, HashedWeight)
            put_hashed_(model, path, wrapper)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the rows replaced, and the numbers in them before and after."""
        return {"rows": self._rows, "numbers_before": self._before, "numbers_after": self._after}

    def _select(self, model: nn.Module, ctx: Context) -> list[str]:
        keep = direct_weights(model)
        tables = [(p, m) for p, m in model.named_modules() if type(m) is nn.Embedding and p not in keep]
        if self.config.targets is None:
            word = ctx.family.embeddings.word
            tables = [(p, m) for p, m in tables if word and p == base_prefix(model) + word]
        if not tables:
            raise TargetError("hash_embeddings: this model has no plain table of tokens")
        return [path for path, _ in select(tables, self.config.targets, (), "hash_embeddings.targets")]
