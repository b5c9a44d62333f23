"""Schedules as pure functions of the fraction of a stage, so that the batch size changes nothing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .config import StrictModel


class Schedule(StrictModel):
    """Strength rises from 0 at `start` to 1 at `end`, both fractions of the stage."""

    shape: Literal["cubic", "linear", "constant"] = Field(
        "cubic",
        description="cubic: 1-(1-t)^3, fast first (Zhu & Gupta 2017, eq. 1); linear; constant: full from the start.",
    )
    start: float = Field(0.1, ge=0, le=1, description="Fraction of the stage at which the strength starts to rise.")
    end: float = Field(0.7, ge=0, le=1, description="Fraction of the stage at which full strength is reached.")

    @model_validator(mode="after")
    def _ordered(self) -> Schedule:
        if self.start > self.end:
            raise ValueError(f"start ({self.start}) must not lie after end ({self.end})")
        return self

    def __call__(self, fraction: float) -> float:
        """Return the strength in [0, 1] at `fraction` of the stage."""
        if self.shape == "constant" or fraction >= self.end:
            return 1.0
        if fraction <= self.start:
            return 0.0
        t = (fraction - self.start) / (self.end - self.start)
        return t if self.shape == "linear" else 1.0 - (1.0 - t) ** 3
