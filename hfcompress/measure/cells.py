"""The record of a suite: which cells it has, and what became of each."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from ..core.config import StrictModel
from ..core.errors import MeasureError
from ..core.explain import first_fault
from ..core.method import Category
from .result import Result, read_result

RECORD, CELLS = "suite.json", "cells"
R = TypeVar("R", bound=StrictModel)


class State(StrEnum):
    """What became of a cell."""

    WAITING = "not run"
    DONE = "done"
    FAILED = "failed"


class CellRecord(StrictModel):
    """One method on one model with one seed."""

    name: str = Field(description="Its run folder, below `cells`.")
    model: str
    method: str
    category: Category
    seed: int
    state: State = State.WAITING
    reason: str | None = Field(None, description="Why it failed.")
    seconds: float | None = Field(
        None,
        description="From start to end, what it made for other cells included; None: it was interrupted, or older.",
    )


class SuiteRecord(StrictModel):
    """`suite.json`: with the results in `cells`, all that the report is made from."""

    title: str
    notes: str | None = None
    cells: list[CellRecord]

    @property
    def minutes(self) -> float | None:
        """How long all cells took one after the other; None where that is not known of each."""
        known = [cell.seconds for cell in self.cells if cell.seconds is not None]
        return sum(known) / 60 if len(known) == len(self.cells) else None


def read_record(path: Path, kind: type[R], what: str, command: str) -> R:
    """Return the record in a file; MeasureError when there is none, or it is not that of `what`."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MeasureError(
            f"no {what} in {path.parent}: {error.strerror}. `hfcompress {command}` writes one."
        ) from error
    except ValueError as error:
        raise MeasureError(
            f"{path} is not the record of a {what}: {first_fault(error, kind)} Run `hfcompress {command}` again, into "
            "another folder, or leave this one out."
        ) from error


def read_suite(folder: Path) -> tuple[SuiteRecord, dict[str, Result]]:
    """Return the record in `folder` and the results of its done cells by name; MeasureError when there is none."""
    record = read_record(folder / RECORD, SuiteRecord, "comparison", "compare")
    done = [cell.name for cell in record.cells if cell.state is State.DONE]
    return record, {name: read_result(folder / CELLS / name) for name in done}
