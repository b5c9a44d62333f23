"""The record of a search: every trial's numbers, and which of them each size was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from ..core.config import StrictModel
from .cells import State, read_record
from .result import Result, read_result

RECORD, SIZES = "search.json", "sizes"


class Trial(StrictModel):
    """One combination of values, measured on a held-out part of the training split."""

    number: int
    params: dict[str, Any] = Field(description="Values by the recipe's dotted key.")
    state: State
    value: float | None = Field(None, description="The metric on the held-out part.")
    cost: float | None = Field(None, description="The quantity that quality is traded for.")
    within: list[str] = Field(default_factory=list, description="Names of the sizes whose bounds it meets.")
    seconds: float = Field(0.0, description="What it took.")
    reason: str | None = Field(None, description="Why it failed.")


class Size(StrictModel):
    """A model that was looked for."""

    name: str = Field(description="Its run folder, below `sizes`.")
    bounds: dict[str, str] = Field(description="What it has to reach.")
    state: State = State.WAITING
    trial: int | None = Field(None, description="Number of the trial whose values it was made with.")
    reason: str | None = Field(None, description="Why there is none.")


class SearchRecord(StrictModel):
    """`search.json`: with the results in `sizes`, all that the report is made from."""

    title: str
    notes: str | None = None
    hash: str = Field(description="Digest of what decides a trial's numbers.")
    space: dict[str, Any] = Field(description="Values to choose between.")
    cost: str = Field(description="Name of the quantity that quality is traded for, as in `require`.")
    lower_cost_is_better: bool
    metric: str | None = Field(None, description="Name of the metric; not known before the first trial.")
    higher_is_better: bool = True
    original: float | None = Field(None, description="The original's metric on the held-out part.")
    split: str | None = Field(None, description="What trials were measured on.")
    examples: int | None = Field(None, description="How many examples that is.")
    trials: list[Trial] = Field(default_factory=list)
    sizes: list[Size] = Field(default_factory=list)

    @property
    def done(self) -> list[Trial]:
        """The trials that were measured."""
        return [trial for trial in self.trials if trial.state is State.DONE]

    def best(self, size: str) -> Trial | None:
        """Return the best trial within the bounds of a size by the metric, of equals the cheapest; None: none is."""
        quality, cheap = (1 if self.higher_is_better else -1), (1 if self.lower_cost_is_better else -1)
        found = [trial for trial in self.done if size in trial.within]
        return max(found, key=lambda t: (quality * (t.value or 0.0), -cheap * (t.cost or 0.0)), default=None)


def read_search(folder: Path) -> tuple[SearchRecord, dict[str, Result]]:
    """Return the record in `folder` and the results of its sizes by name; MeasureError when there is none."""
    record = read_record(folder / RECORD, SearchRecord, "search", "search")
    done = [size.name for size in record.sizes if size.state is State.DONE]
    return record, {name: read_result(folder / SIZES / name) for name in done}
