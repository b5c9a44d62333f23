"""Position pruning: learned position embeddings beyond the longest input leave the model."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from ..core.config import StrictModel
from ..core.errors import LifecycleError, TargetError
from ..core.method import Category, Context, Corpus, Method, MethodInfo, Phase
from ..core.position_tables import PositionTable, position_table
from ..core.registry import register
from ..modules.parametrizations import detach
from ..modules.position_rows import fit_grid_, grid_rows, rows_of, table_path
from ..modules.token_positions import TokenPositions, find_token_positions, keep_first_tokens_, require_cut

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
        """Find the length or image size to keep; return the tables' paths.

        Raises TargetError when the model has no such table or needs all of it, LifecycleError when the size is unknown.
        """
        self._processor = ctx.processor
        self._grid = table if (table := position_table(model)) is not None and table.grid else None
        self._tokens = find_token_positions(model)
        if self._grid is not None and not self._grid.fixed:
            return self._prepare_grid(model, self._grid, ctx)
        if self._tokens is None:
            raise TargetError(_why_none(model))
        return self._prepare_tokens(model, self._tokens, ctx)

    def finalize(self, model: nn.Module) -> None:
        """Cut the tables, and let the tokenizer cut texts to what is left."""
        if self._tokens is None:
            fit_grid_(model, self._grid, self._size)  # type: ignore[arg-type]
            return
        for path in self._tokens.paths:
            detach(model, path, nn.Module)
        keep_first_tokens_(model, self._tokens, self._size)
        limit: Any = getattr(self._processor, "model_max_length", 0)
        if limit > self._size:
            self._processor.model_max_length = self._size

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the positions before and after."""
        if self._tokens is None:
            after = rows_of(model, self._grid)  # type: ignore[arg-type]
        else:
            after = int(model.get_submodule(self._tokens.paths[0]).num_embeddings)  # type: ignore[arg-type]
        return {"positions_before": self._before, "positions_after": after}

    def _prepare_grid(self, model: nn.Module, table: PositionTable, ctx: Context) -> list[str]:
        self._before, self._size = rows_of(model, table), self._image_size(ctx.corpus)
        self._require_less(grid_rows(model, self._size, table), "pixels")
        return [table_path(model, table)]

    def _prepare_tokens(self, model: nn.Module, positions: TokenPositions, ctx: Context) -> list[str]:
        self._before, self._size = positions.rows, self._length(model, ctx.corpus)
        self._require_less(positions.first + self._size, "tokens")
        require_cut(model, positions, self._size)
        return list(positions.paths)

    def _require_less(self, left: int, unit: str) -> None:
        if left >= self._before:
            raise TargetError(f"positions: inputs of {self._size} {unit} need all {self._before} positions there are")

    def _length(self, model: nn.Module, corpus: Corpus) -> int:
        if self.config.length is not None:
            return self.config.length
        if getattr(model.config, "is_encoder_decoder", False) and model.can_generate():  # type: ignore[operator]
            raise LifecycleError("positions: how long the texts are that this model writes is not known: set length")
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


def _why_none(model: nn.Module) -> str:
    """Say why no position can go."""
    what = f"positions: no table of learned positions is known for a {type(model).__name__}: "
    if getattr(model, "main_input_name", "") == "pixel_values":
        return f"{what}it uses every one at the only image size it takes, or has none"
    return f"{what}it computes them, or learns them in other ways than a row for each place in a text"
