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


class Weighted(StrictModel):
    """A term of the loss: its weight, which may change once over the stage."""

    weight: float = Field(1.0, ge=0, description="Factor on this part of the loss; with a schedule, at its end.")
    initial: float | None = Field(
        None, ge=0, description="Weight before the schedule starts; 0 unless set. Above `weight`: the part fades out."
    )
    schedule: Schedule | None = Field(
        None, description="When the weight moves from `initial` to `weight`; without one it never changes."
    )

    @model_validator(mode="after")
    def _moves(self) -> Weighted:
        if self.initial is not None and self.schedule is None:
            raise ValueError("initial: it needs a schedule, such as {shape: linear, start: 0.3, end: 0.6}")
        return self

    def at(self, fraction: float) -> float:
        """Return the weight at `fraction` of the stage."""
        if self.schedule is None:
            return self.weight
        initial = self.initial or 0.0
        return initial + (self.weight - initial) * self.schedule(fraction)

    @property
    def ever(self) -> bool:
        """Say whether the weight is above 0 at any time."""
        return max(self.weight, self.initial or 0.0) > 0
