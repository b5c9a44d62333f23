"""Token merging: between the halves of every block, those of an image's tokens that are most alike become one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator
from torch import nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.registry import register
from ..modules.merging import Merging, merge_in_blocks_, mergeable_blocks, merges, tokens_left
from ..modules.position_rows import patch_count


class TokenMergingConfig(StrictModel):
    """Settings of token merging."""

    remove: int | float = Field(
        0.05,
        gt=0,
        description="What each block merges away: a number of tokens (ToMe: r), or below 1 a share of the patches it "
        "is given; never more than half of them. Class and distillation tokens stay.",
    )
    schedule: Literal["constant", "decreasing"] = Field(
        "constant",
        description="constant: as much in every block; decreasing: twice as much in the first, falling to nothing in "
        "the last, which saves more and costs more accuracy (ToMe, appendix D).",
    )
    blocks: list[int] | None = Field(
        None, min_length=1, description="Blocks that merge, from 0, or from the end with -1; by default all."
    )

    @field_validator("remove")
    @classmethod
    def _number_or_share(cls, value: int | float) -> int | float:
        if value >= 1 and value != int(value):
            raise ValueError("give a whole number of tokens, or a share between 0 and 1")
        return int(value) if value >= 1 else value


@register
class TokenMerging(Method[TokenMergingConfig]):
    """Lets every block hand on fewer tokens: fewer operations in every engine, the same weights in the file."""

    info = MethodInfo(
        name="token_merging",
        title="Token merging",
        summary="Tokens of an image that are alike become one in every block (ToMe), at once or while training.",
        category=Category.COMPACT,
        phase=Phase.STRUCTURE,
        papers=("https://arxiv.org/abs/2210.09461",),
        examples={"": {"remove": 2}},
    )
    Config = TokenMergingConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Let the blocks merge once the stage has begun; return those that will.

        Raises FamilyError where tokens have no like, TargetError when blocks merge already or nothing would be merged.
        """
        if merges(model):
            raise TargetError("token_merging: this model's blocks merge tokens already")
        self._family = ctx.family
        blocks = mergeable_blocks(model, self._family)
        amounts = self._amounts(len(blocks))
        self._before = self._family.image_tokens.leading + patch_count(model, ctx.corpus.image_size())  # type: ignore[union-attr]
        self._merging: list[Merging] = merge_in_blocks_(model, self._family, amounts)
        for merging in self._merging:
            merging.on = False
        if self._counts(model)[-1] == self._before:
            raise TargetError(f"token_merging.remove: {self.config.remove} is less than one of {self._before} tokens")
        return [block.path for block, amount in zip(blocks, amounts, strict=True) if amount]

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Merge as soon as the stage has begun, so that it trains the model as it will be."""
        for merging in self._merging:
            merging.on = fraction > 0

    def finalize(self, model: nn.Module) -> None:
        """Nothing more: the last step has switched it on for good, and the checkpoint says so."""

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the tokens of an image, and what each block hands on."""
        return {
            "tokens_before": self._before,
            **{f"block{i}_tokens": count for i, count in enumerate(self._counts(model))},
        }

    def _counts(self, model: nn.Module) -> list[int]:
        return tokens_left(model, self._family, self._before)

    def _amounts(self, count: int) -> list[Any]:
        """Return what each of `count` blocks is to remove."""
        chosen = (
            range(count) if self.config.blocks is None else sorted({self._index(i, count) for i in self.config.blocks})
        )
        remove, whole = self.config.remove, isinstance(self.config.remove, int)
        amounts: list[Any] = [0 if whole else 0.0] * count
        for i, block in enumerate(chosen):
            share = 1.0 if self.config.schedule == "constant" else 2 * (1 - i / max(len(chosen) - 1, 1))
            amounts[block] = round(remove * share) if whole else remove * share
        return amounts

    @staticmethod
    def _index(block: int, count: int) -> int:
        if not -count <= block < count:
            raise TargetError(f"token_merging.blocks: there is no block {block}; blocks are 0 to {count - 1}")
        return block % count
