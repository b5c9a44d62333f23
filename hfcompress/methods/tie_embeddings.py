"""Embedding tables that are one: input with output, encoder with decoder, or the teacher's table kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..modules.sharing import attach_shared, finish_sharing_, start_sharing_
from ..modules.tables import adopt_, input_table, restore_, table_pair, tie_in_config_


class TieEmbeddingsConfig(StrictModel):
    """Settings of embedding tying."""

    tie: Literal["output", "decoder", "teacher"] = Field(
        "output",
        description="What becomes one with the input embeddings. output: the layer that gives the logits per token; "
        "decoder: the decoder's table with the encoder's; teacher: the table is the teacher's, which has the same "
        "tokens and width, and does not train in this stage.",
    )
    init: Literal["mean", "input"] = Field(
        "mean", description="Where the one table starts: at the mean of both, or at the input embeddings."
    )


@register
class TieEmbeddings(Method[TieEmbeddingsConfig]):
    """Lets two tables be one from the first step of its stage on; train with it, then or afterwards."""

    info = MethodInfo(
        name="tie_embeddings",
        title="Embedding tying",
        summary="Input and output embeddings, or those of encoder and decoder, become one table; train after it.",
        category=Category.SHARING,
        phase=Phase.STRUCTURE,
        papers=("https://arxiv.org/abs/1608.05859",),
        alone=True,
    )
    Config = TieEmbeddingsConfig

    @property
    def needs(self) -> Needs:
        """Only a teacher's table needs the teacher, and a stage in which the rest trains on it."""
        keeps = self.config.tie == "teacher"
        return Needs(teacher=keeps, training=keeps)

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Find both tables; TargetError where one is missing, they differ in shape, or are one already."""
        self._names: list[list[str]] = []
        if self.config.tie == "teacher":
            self._teacher = ctx.teacher
            self._table = input_table(model)
            if ctx.teacher is None or input_table(ctx.teacher)[1].weight.shape != self._table[1].weight.shape:
                raise TargetError("tie_embeddings.tie: the teacher's table has other tokens or another width")
            self._trained = self._table[1].weight.requires_grad
            self._table[1].weight.requires_grad_(False)
            return [self._table[0]]
        first, second = table_pair(model, self.config.tie)
        self._names = [[f"{first}.weight", f"{second}.weight"]]
        attach_shared(model, self._names)
        return [first, second]

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Share as soon as the stage has begun."""
        if fraction <= 0:
            return
        if self.config.tie == "teacher" and self._teacher is not None:
            adopt_(self._table[1], input_table(self._teacher)[1])
        else:
            start_sharing_(model, self._names, [[0.5, 0.5] if self.config.init == "mean" else [1.0, 0.0]])

    def finalize(self, model: nn.Module) -> None:
        """Tie the tables, in the config where it can say so."""
        self._saved = 0
        if self.config.tie == "teacher":
            restore_(self._table[1], self._trained)
            return
        first, second = self._names[0]
        self._saved = model.get_parameter(first).numel()
        finish_sharing_(model, self._names)
        tie_in_config_(model, first, second)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the number of parameters that are stored no more."""
        return {"parameters_saved": self._saved}
