"""Embeddings narrower than the hidden state (ALBERT, ELECTRA): channels, what each is worth, and their removal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..core.errors import FamilyError
from ..core.families import Family, base_prefix, embeddings_of, has_module
from .importance import Batch
from .width import Axis, activations, keep_channels_, magnitudes

KEY = "embedding_size"  # of the config


class EmbeddingWidth:
    """The channels between the tables of embeddings and the layer that widens them to the hidden state."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        """Find them; FamilyError for a model whose embeddings are as wide as its hidden state."""
        config = model.config
        self.width = int(getattr(config, KEY, 0) or 0)
        if not self.width or self.width == getattr(config, family.hidden_key):
            raise FamilyError(
                f"a {family.model_type} has embeddings as wide as its hidden state, so {KEY} can't be another: "
                "set hidden_size, or factorize the embeddings in a stage"
            )
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
