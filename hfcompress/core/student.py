"""Settings of a student that is derived from a model: how deep and how wide it is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .config import StrictModel
from .errors import TargetError

_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(gt=0, lt=1)]
Size = _Count | _Share


class StudentConfig(StrictModel):
    """A smaller model of the same kind, its weights taken over from the model; sizes are numbers, or shares below 1."""

    layers: Size | None = Field(None, description="Blocks (of each stack, where there are several); default: all.")
    choose: Literal["uniform", "every_other", "first", "last"] | list[int] = Field(
        "uniform",
        description="Which blocks the student gets. uniform: the first, the last and evenly spaced ones between; "
        "every_other: evenly spaced from the first (DistilBERT: 0, 2, 4, …); first; last; or a list of numbers from 0.",
    )
    hidden_size: Size | None = Field(None, description="Channels of the hidden state; default: all.")
    channels: Literal["importance", "pca"] = Field(
        "importance",
        description="What these are. importance: the model's own of the largest mean |h| on training data; pca: the "
        "principal directions of the hidden states there, every weight projected on them (as SliceGPT does): keeps "
        "more where few channels stay, less where most do.",
    )
    heads: Size | None = Field(
        None,
        description="Attention heads per block, of the same size: those of most Fisher information; default: all.",
    )
    ffn: Size | None = Field(
        None, description="Feed-forward units per block: those of most Fisher information; default: all."
    )
    embedding_size: Size | None = Field(
        None,
        description="Width of the token table. Where embeddings are narrower than the hidden state already (ALBERT, "
        "ELECTRA) that many of their channels stay; elsewhere the table becomes a narrow one and a projection to the "
        "hidden size (the bottleneck of ALBERT and MobileBERT), by its SVD, weighted by how often tokens occur.",
    )
    round_to: int = Field(8, ge=1, description="Shares of channels and units are rounded to a multiple of this.")
    examples: int = Field(512, ge=1, description="Training examples to measure importance on.")

    @model_validator(mode="after")
    def _smaller(self) -> StudentConfig:
        if isinstance(self.choose, list):
            if self.layers not in (None, len(self.choose)):
                raise ValueError(
                    f"layers: {self.layers} and a list of {len(self.choose)} in `choose`; leave layers out"
                )
        elif self.layers is None and not self.measures:
            raise ValueError(
                "set layers, hidden_size, heads, ffn, embedding_size or several; else the student is the model itself"
            )
        return self

    @property
    def measures(self) -> bool:
        """Say whether importance is measured on data."""
        return any(size is not None for size in (self.hidden_size, self.heads, self.ffn, self.embedding_size))


def resolve(size: Size | None, total: int, where: str, multiple: int = 1) -> int:
    """Return the number that a setting means of `total`; TargetError when there are not that many."""
    if size is None:
        return total
    if isinstance(size, float):
        return min(total, max(1, round(size * total / multiple)) * multiple)
    if size > total:
        raise TargetError(f"{where}: {size} is more than the model's {total}")
    return size
