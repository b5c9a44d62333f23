"""Settings shared by the methods that split matrices into two factors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .config import StrictModel
from .method import CALIBRATION_EXAMPLES
from .sparsity import Targets


class RankConfig(Targets):
    """How much rank each layer gets: the same for all, by its own spectrum, or out of one budget."""

    rank: int | None = Field(None, ge=1, description="The rank of every layer; instead of energy or keep.")
    energy: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Per layer the least rank whose squared singular values sum to this share; instead of rank or "
        "keep. Layers that would not get smaller stay whole.",
    )
    keep: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of all these layers' weights that is left, spent where it lowers the error most; layers "
        "that are better left whole stay so. Instead of rank or energy.",
    )
    compare: Literal["absolute", "relative"] = Field(
        "absolute",
        description="For keep: how errors of different layers compare. absolute: as they are; relative: as shares of "
        "what each layer has in all.",
    )
    round_to: int = Field(8, ge=1, description="For energy and keep: ranks are multiples of this; kernels like it.")

    @model_validator(mode="after")
    def _one_of_three(self) -> RankConfig:
        if sum(value is not None for value in (self.rank, self.energy, self.keep)) != 1:
            raise ValueError("set one of rank, such as 64, energy, such as 0.9, and keep, such as 0.5")
        return self


class CalibratedRankConfig(RankConfig):
    """The same for methods that learn from data what matters."""

    examples: int = Field(
        CALIBRATION_EXAMPLES, ge=1, description="Calibration examples to read, where the caller provides that many."
    )


class KernelConfig(StrictModel):
    """Settings shared by the methods that split the kernels of convolutions."""

    keep: float = Field(0.5, gt=0, lt=1, description="Share of each kernel's weights that may be left.")
    targets: list[str] | None = Field(
        None,
        description="Module paths, re:<regex>, or class names (Conv2d); default: every convolution but depthwise and "
        "other grouped ones.",
    )
    ignore: list[str] = Field(default_factory=list, description="Modules to leave alone, in the same notation.")
