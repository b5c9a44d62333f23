"""Settings that methods acting on single weights of linear layers share."""

from __future__ import annotations

from pydantic import Field, model_validator

from .config import StrictModel
from .method import CALIBRATION_EXAMPLES


class Layers(StrictModel):
    """Which layers a method acts on."""

    targets: list[str] | None = Field(
        None,
        description="Module paths, re:<regex>, or class names (Linear, Conv1D); default: every linear layer in the "
        "model's blocks.",
    )
    ignore: list[str] = Field(default_factory=list, description="Modules to leave alone, in the same notation.")


class Calibrated(Layers):
    """Which layers a method acts on that learns their inputs from data."""

    examples: int = Field(
        CALIBRATION_EXAMPLES, ge=1, description="Calibration examples to read, where the caller provides that many."
    )


class Sparsity(Calibrated):
    """How many weights of a layer become zero: a share of them, or all but n of every m."""

    sparsity: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of each layer's weights to set to zero; default: 0.5, if there is no pattern.",
    )
    pattern: tuple[int, int] | None = Field(
        None, description="[n, m]: in every row keep n of m consecutive weights, such as [2, 4]; instead of sparsity."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Sparsity:
        if self.sparsity is not None and self.pattern is not None:
            raise ValueError("set either sparsity, such as 0.5, or pattern, such as [2, 4]")
        if self.pattern is not None and not 0 < self.pattern[0] < self.pattern[1]:
            raise ValueError(f"pattern keeps n of m weights with 0 < n < m, got {list(self.pattern)}")
        return self

    @property
    def density(self) -> float:
        """Share of weights that are kept."""
        if self.pattern is not None:
            return self.pattern[0] / self.pattern[1]
        return 1.0 - (0.5 if self.sparsity is None else self.sparsity)
