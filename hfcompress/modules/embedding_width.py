"""Embeddings narrower than the hidden state: channels, what each is worth, and their removal; or made so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import FamilyError, TargetError
from ..core.families import Family, base_prefix, embeddings_of, has_module
from ..core.student import Size, resolve
from ..ops.lowrank import decompose, largest_saving_rank
from .importance import Batch
from .splitting import refuse_unsplittable, split_tied_
from .tables import input_table
from .ties import sharers
from .width import Axis, activations, keep_channels_, magnitudes

KEY = "embedding_size"  # of the config
WHERE = f"student.{KEY}"


def has_own_width(model: nn.Module, family: Family) -> bool:
    """Say whether the model's embeddings are narrower than its hidden state, as the config says."""
    width: Any = getattr(model.config, KEY, None)
    return isinstance(width, int) and width != getattr(model.config, family.hidden_key)


@torch.no_grad()
def narrow_table_(model: nn.Module, size: Size, multiple: int, batches: Iterable[Batch] | None) -> str:
    """Put a narrow table and a projection in place of the token table and what is tied to it; return that in words.

    Tokens weigh as often as the batches have them, and once more. Raises TargetError where there is no plain table of
    tokens, or the two would be no smaller.
    """
    path, table = input_table(model)
    tokens, width = table.weight.shape
    rank, largest = resolve(size, width, WHERE, multiple), largest_saving_rank(tokens, width)
    if rank > largest:
        raise TargetError(f"{WHERE}: {rank} saves nothing at {path} ({tokens} x {width}), where at most {largest} does")
    group = sharers(model, path)
    for place, _ in group:
        refuse_unsplittable(model, place, (nn.Embedding, nn.Linear), WHERE, shared=True)
    counts = torch.ones(tokens, dtype=torch.double, device=table.weight.device)
    for batch in batches or ():
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        real = ids.flatten() if mask is None else ids[mask.bool()]
        counts += torch.bincount(real.to(counts.device), minlength=tokens)
    split_tied_(model, group, *decompose(table.weight, rows=counts.sqrt()).cut(rank))
    return f"a token table of width {rank} and a projection to {width}, by SVD of the model's table"


class EmbeddingWidth:
    """The channels between the tables of embeddings and the layer that widens them to the hidden state."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        """Find them, in a model that has them (`has_own_width`); FamilyError where they are read in another way."""
        config: Any = model.config
        self.width = int(getattr(config, KEY))
        self.tables = embeddings_of(model, family)
        prefix = base_prefix(model)
        norms = [prefix + path for path in family.outer_norms if has_module(model, prefix + path)]
        self.norm = next((n for n in norms if self._reads(model.get_submodule(n), "normalized_shape")), "")
        widening = [p for p, m in model.named_modules() if isinstance(m, nn.Linear) and m.in_features == self.width]
        if not self.norm or len(widening) != 1:
            raise FamilyError(
                f"{KEY}: what reads the embeddings of this {type(model).__name__} is not one linear layer"
            )
        (self.widening,) = widening

    def keep_(self, model: nn.Module, keep: Tensor) -> None:
        """Keep the channels where `keep` (width,) is True, in place; the config then says how many."""
        keep_channels_(model, self._axes(), keep)
        setattr(model.config, KEY, int(keep.sum()))

    @torch.no_grad()
    def scores(self, model: nn.Module, batches: Iterable[Batch] | None) -> Tensor:
        """Return, by channel, mean |h| over tokens times the norm of the column that reads it, or of weights alone."""
        if batches is None:
            return magnitudes(model, self._axes(), self.width)
        columns: Tensor = model.get_submodule(self.widening).weight  # type: ignore[assignment]
        return activations(model, [self.norm], batches) * columns.double().norm(dim=0).cpu()

    def _axes(self) -> list[Axis]:
        axes = [Axis(path, "weight", 1) for path in (*self.tables, self.widening)]
        return [*axes, Axis(self.norm, "weight", 0), Axis(self.norm, "bias", 0)]

    def _reads(self, module: nn.Module, name: str) -> bool:
        sizes: Sequence[int] = getattr(module, name, ())
        return tuple(sizes) == (self.width,)
