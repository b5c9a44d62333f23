"""Running a suite: every cell a run of its own in a process of its own, done cells kept, failed ones told."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..core.disk import room_needed
from ..core.errors import MeasureError, RecipeError, nearest
from ..core.files import remove, write_text
from ..measure.cells import CELLS, RECORD, CellRecord, State, SuiteRecord, read_record
from ..measure.result import read_result
from ..publish.suite import write_report
from ..recipe.suite import Cell, LoadedSuite
from . import child
from .child import AGAIN
from .folder import RunFolder, changed_inputs, holds
from .lock import sole_writer
from .reporter import Reporter
from .shelf import Shelf

_SUITE = "suite.yaml"


@dataclass
class _Progress:
    """What is known while cells run: their records, and what they share."""

    folder: Path
    suite: LoadedSuite
    records: dict[str, CellRecord]
    shelf: Shelf = field(default_factory=Shelf)
    ran: list[float] = field(default_factory=list)  # seconds of each cell that was run now

    def write(self) -> SuiteRecord:
        """Write suite.json."""
        suite = self.suite.suite
        record = SuiteRecord(title=suite.title, notes=suite.notes, cells=list(self.records.values()))
        write_text(self.folder / RECORD, record.model_dump_json(indent=2) + "\n")
        return record

    def note(self, cell: Cell, state: State, seconds: float | None, reason: str | None = None) -> None:
        """Record what became of a cell."""
        self.records[cell.name] = _record(cell, state, seconds, reason)
        self.write()


def run_suite(
    suite: LoadedSuite,
    output: str | Path,
    *,
    only: Sequence[str] = (),
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Run every cell of a suite that is not done yet, write the report, and return the report's path.

    Done cells are kept as long as their recipe is the same, an interrupted one goes on from its last checkpoint, a
    failed one is tried again; `fresh`: all start anew. `only`: cells of these models or methods. Raises
    HFCompressError when `output` holds something else or another process writes there, RecipeError when `only` names
    nothing there is.
    """
    chosen, folder = _chosen(suite, only), Path(output)
    with room_needed(folder, AGAIN), sole_writer(folder, RECORD, "a comparison's"):
        return _run_cells(suite, chosen, folder, fresh, reporter or Reporter())


def _run_cells(suite: LoadedSuite, chosen: list[Cell], folder: Path, fresh: bool, reporter: Reporter) -> Path:
    progress = _open(suite, folder, fresh)
    todo = [cell for cell in chosen if progress.records[cell.name].state is not State.DONE]
    kept = len(chosen) - len(todo)
    reporter.heading(f"{len(chosen)} cells" + (f", {kept} of them done before" if kept else ""))
    try:
        for index, cell in enumerate(todo):
            reporter.heading(f"Cell {kept + index + 1} of {len(chosen)}: {cell.loaded.recipe.title}"
                             f", seed {cell.seed}{_remaining(progress, len(todo) - index)}")  # fmt: skip
            _run(cell, progress, reporter)
    finally:
        progress.write()
    return write_report(folder)


def _chosen(suite: LoadedSuite, only: Sequence[str]) -> list[Cell]:
    known = {name for cell in suite.cells for name in (cell.model, cell.method)}
    for name in only:
        if name not in known:
            raise RecipeError(f"--only {name}: the suite has no such model or method.{nearest(name, known)}")
    return [cell for cell in suite.cells if not only or {cell.model, cell.method} & set(only)]


def _open(suite: LoadedSuite, folder: Path, fresh: bool) -> _Progress:
    """Return where things stand in `folder`."""
    if fresh:
        remove(folder / CELLS)
    took = _took(folder)
    records = {
        cell.name: _record(cell, State.DONE, took.get(cell.name)) if _is_done(cell, folder) else _record(cell)
        for cell in suite.cells
    }
    progress = _Progress(folder, suite, records)
    for cell in suite.cells:
        if records[cell.name].state is State.DONE:
            _remember(cell, progress)
    progress.write()  # first: by it the folder is known as a comparison's
    write_text(folder / _SUITE, suite.text)
    return progress


def _took(folder: Path) -> dict[str, float | None]:
    """Return the seconds of the cells that were run before."""
    if not (folder / RECORD).is_file():
        return {}
    return {
        cell.name: cell.seconds for cell in read_record(folder / RECORD, SuiteRecord, "comparison", "compare").cells
    }


def _record(
    cell: Cell, state: State = State.WAITING, seconds: float | None = None, reason: str | None = None
) -> CellRecord:
    return CellRecord(
        name=cell.name,
        model=cell.model,
        method=cell.method,
        category=cell.category,
        seed=cell.seed,
        state=state,
        reason=reason,
        seconds=seconds,
    )


def _is_done(cell: Cell, folder: Path) -> bool:
    try:
        path = folder / CELLS / cell.name
        same = read_result(path).recipe_hash == cell.loaded.hash and RunFolder(path).has_all()
        return same and not changed_inputs(path, cell.loaded.recipe)
    except MeasureError:
        return False


def _remaining(progress: _Progress, cells: int) -> str:
    if not progress.ran:
        return ""
    minutes = cells * sum(progress.ran) / len(progress.ran) / 60
    return f" (at this pace {minutes:.0f} more minutes)"


def _run(cell: Cell, progress: _Progress, reporter: Reporter) -> None:
    path = progress.folder / CELLS / cell.name
    begun = holds(path, cell.loaded)
    started = time.perf_counter()
    reason = child.execute(cell.loaded, path, progress.shelf)
    progress.ran.append(time.perf_counter() - started)
    seconds = None if begun else round(progress.ran[-1], 1)
    if reason is None:
        progress.note(cell, State.DONE, seconds)
        _remember(cell, progress)
        return
    progress.note(cell, State.FAILED, seconds, reason)
    reporter.say(f"failed: {reason}", style="red")


def _remember(cell: Cell, progress: _Progress) -> None:
    progress.shelf.keep(RunFolder(progress.folder / CELLS / cell.name), cell.loaded.recipe)
