"""Factorized embeddings: a wide table of tokens becomes a narrow one and a projection, as ALBERT has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.registry import register
from ..core.targets import select
from ..modules.chains import layers_of
from ..modules.lowrank import Show
from ..modules.matrix import as_matrix, stored
from ..modules.splitting import refuse_unsplittable, split_tied_
from ..modules.tables import input_embeddings
from ..modules.ties import places_of, sharers
from ..ops.lowrank import decompose, largest_saving_rank


class FactorizeEmbeddingsConfig(StrictModel):
    """Settings of factorized embeddings."""

    rank: int = Field(128, ge=1, description="Width of the narrow table (ALBERT: 128).")
    by_frequency: bool = Field(
        True,
        description="Where there is a corpus, a token's vector counts as often as the corpus has the token, so that "
        "frequent ones lose least; else all count alike.",
    )
    smoothing: float = Field(
        1.0, gt=0, description="Added to every token's count, so that tokens the corpus lacks are not given up."
    )
    targets: list[str] | None = Field(
        None, description="Embedding tables: module paths, re:<regex>, or class names; default: that of the tokens."
    )


@register
class FactorizeEmbeddings(Method[FactorizeEmbeddingsConfig]):
    """Splits the token table by its SVD, weighted by token frequencies; the factors train like any others."""

    info = MethodInfo(
        name="factorize_embeddings",
        title="Factorized embeddings",
        summary="The token table becomes a narrow one and a projection, from its SVD weighted by token counts.",
        category=Category.LOW_RANK,
        phase=Phase.FACTOR,
        papers=("https://arxiv.org/abs/1909.11942", "https://arxiv.org/abs/1806.06950"),
        alone=True,
        examples={"": {"rank": 4}},
    )
    Config = FactorizeEmbeddingsConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Choose the tables and count the corpus's tokens.

        Raises TargetError for a model without token table, one that does not split, and a rank that saves nothing.
        """
        self._paths = self._select(model)
        self._groups = {path: sharers(model, path) for path in self._paths}
        for path in self._paths:
            for tied, _ in self._groups[path]:
                refuse_unsplittable(model, tied, (nn.Embedding, nn.Linear), self.info.name, shared=True)
            self._refuse_rank(model, path)
        self._words = input_embeddings(model)
        self._counts = _counted(ctx.corpus.token_ids()) if self.config.by_frequency else Counter()
        self._words_path = next((p for p in self._paths if model.get_submodule(p) is self._words), None)
        self._before = sum(model.get_submodule(p).weight.numel() for p in self._paths)  # type: ignore[operator,misc]
        self._places = {path: places_of(model, path) for path in self._paths}
        self._show = Show(model, self._places)
        return self._paths

    @torch.no_grad()
    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Show the tables' approximations at the end of the stage, so that what is evaluated is what will be stored."""
        if fraction < 1.0:
            self._show.off(model)
            return
        self._cuts = {path: self._cut(model, path) for path in self._paths}
        self._show.on(model, {path: up @ down for path, (down, up) in self._cuts.items()})

    def settled(self, fraction: float) -> bool:
        """Say whether the tables are cut, which they are at the end of the stage."""
        return fraction >= 1.0

    def finalize(self, model: nn.Module) -> None:
        """Put the factors in place."""
        self._show.remove(model)
        for path, (down, up) in self._cuts.items():
            split_tied_(model, self._groups[path], down, up)
        del self._cuts

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return tables, rank, their numbers before and after, and how many tokens of the corpus weighed them."""
        places = [place for places in self._places.values() for place in places]
        factors = {id(p): p for place in places for p in model.get_submodule(place).parameters() if p.ndim > 1}
        after = sum(p.numel() for p in factors.values())
        return {
            "tables": len(self._paths),
            "rank": self.config.rank,
            "weights_before": self._before,
            "weights_after": after,
            "corpus_tokens": sum(self._counts.values()),
        }

    def _select(self, model: nn.Module) -> list[str]:
        if self.config.targets is not None:
            tables = layers_of(model, (nn.Embedding,))
            return [path for path, _ in select(tables, self.config.targets, (), f"{self.info.name}.targets")]
        words = input_embeddings(model)
        if words is None:
            raise TargetError(f"{self.info.name}: a {type(model).__name__} has no input embeddings, so no token table")
        if not isinstance(words, nn.Embedding):
            raise TargetError(f"{self.info.name}: the input embeddings are a {type(words).__name__}, no token table")
        return [next(path for path, module in model.named_modules() if module is words)]

    def _refuse_rank(self, model: nn.Module, path: str) -> None:
        tokens, width = model.get_submodule(path).weight.shape  # type: ignore[misc]
        largest = largest_saving_rank(int(tokens), int(width))
        if self.config.rank > largest:
            raise TargetError(
                f"{self.info.name}.rank: {self.config.rank} saves nothing at {path} ({tokens} x {width}), where a "
                f"rank of at most {largest} does"
            )

    def _cut(self, model: nn.Module, path: str) -> tuple[Tensor, Tensor]:
        module = model.get_submodule(path)
        weight, rows = as_matrix(module, stored(module)), None
        if path == self._words_path and self._counts:
            found = {token: n for token, n in self._counts.items() if 0 <= token < len(weight)}
            rows = torch.full((len(weight),), self.config.smoothing, dtype=torch.double, device=weight.device)
            rows[list(found)] += torch.tensor(list(found.values()), dtype=torch.double, device=weight.device)
            rows = rows.sqrt()
        return decompose(weight, rows=rows).cut(self.config.rank)


def _counted(rows: Iterable[Sequence[int]]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for row in rows:
        counts.update(row)
    return counts
