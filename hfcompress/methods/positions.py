"""Position pruning: learned position embeddings beyond the longest input leave the model."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from ..core.config import StrictModel
from ..core.errors import LifecycleError, TargetError
from ..core.families import base_prefix
from ..core.method import Category, Context, Corpus, Method, MethodInfo, Phase
from ..core.position_tables import PositionTable, longest_input, position_table
from ..core.registry import register
from ..modules.parametrizations import detach
from ..modules.position_rows import fit_grid_, grid_rows, keep_first_positions_, rows_of, table_path

_LEAST = 16  # tokens: shorter than any sentence, and what an exporter traces with


class PositionsConfig(StrictModel):
    """Settings of position pruning."""

    length: int | None = Field(
        None, ge=_LEAST, description="Longest text in tokens; by default that of the training data, at least 16."
    )
    round_to: int = Field(8, ge=1, description="The length found in the data is rounded up to a multiple of this.")
    image_size: int | None = Field(None, ge=1, description="Pixels per side; by default those of the training data.")


@register
class Positions(Method[PositionsConfig]):
    """Keeps the positions that inputs reach: the first ones of a text model, one image size's of a vision model."""

    info = MethodInfo(
        name="positions",
        title="Position pruning",
        summary="Learned positions beyond the longest text go; a grid of them is interpolated once to one image size.",
        category=Category.PRUNING,
        phase=Phase.STRUCTURE,
        cuts=True,
        papers=("https://arxiv.org/abs/2010.11929",),
    )
    Config = PositionsConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Find the length or image size to keep; return the table's path.

        Raises TargetError when the model has no such table or needs all of it, LifecycleError when the size is unknown.
        """
        table = position_table(model)
        if table is None or table.fixed:
            raise TargetError(
                f"positions: no table of learned positions is known for a {type(model).__name__}: it computes them, "
                "or uses every one at the only image size it takes"
            )
        self._table: PositionTable = table
        self._processor, self._before = ctx.processor, rows_of(model, table)
        self._size = self._image_size(ctx.corpus) if table.grid else self._length(ctx.corpus)
        left = (
            grid_rows(model, self._size, table)
            if table.grid
            else self._before - longest_input(model.config) + self._size
        )
        if left >= self._before:
            unit = "pixels" if table.grid else "tokens"
            raise TargetError(f"positions: inputs of {self._size} {unit} need all {self._before} positions there are")
        return [table_path(model, table)]

    def finalize(self, model: nn.Module) -> None:
        """Cut the table, and let the tokenizer cut texts to what is left."""
        if self._table.grid:
            fit_grid_(model, self._table, self._size)
            return
        detach(model, base_prefix(model) + self._table.path, nn.Module)
        keep_first_positions_(model, self._table, self._size)
        limit: Any = getattr(self._processor, "model_max_length", 0)
        if limit > self._size:
            self._processor.model_max_length = self._size

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the positions before and after."""
        return {"positions_before": self._before, "positions_after": rows_of(model, self._table)}

    def _length(self, corpus: Corpus) -> int:
        if self.config.length is not None:
            return self.config.length
        longest = max(map(len, corpus.token_ids()), default=0)
        if not longest:
            raise LifecycleError(
                "positions: how long texts are is not known: set length, or pass calibration=<batches with input_ids>"
            )
        return max(_LEAST, -(-longest // self.config.round_to) * self.config.round_to)

    def _image_size(self, corpus: Corpus) -> int:
        if self.config.image_size is not None:
            return self.config.image_size
        size = corpus.image_size()
        if size is None:
            raise LifecycleError(
                "positions: the size of images is not known: set image_size, or pass calibration=<batches of pixels>"
            )
        if size[0] != size[1]:
            raise TargetError(f"positions: images of {size[0]}x{size[1]} pixels are not square")
        return size[0]
