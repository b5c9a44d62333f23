"""Running a suite: every cell a run of its own in a process of its own, done cells kept, failed ones told."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import HFCompressError, MeasureError, RecipeError, nearest
from ..core.files import write_text
from ..measure.cells import CELLS, RECORD, CellRecord, State, SuiteRecord
from ..measure.result import read_result
from ..publish.suite import write_report
from ..recipe.suite import Cell, LoadedSuite
from .folder import RunFolder, holds, open_folder
from .reporter import Reporter

_DONE, _UNMET, _INTERRUPTED = 0, 3, 130  # exit statuses of `hfcompress run`
_CHUNK, _TAIL = 4096, 20_000  # bytes passed on at once; characters of a run's stderr kept to find the reason in
_REASON = 300  # characters of it that a table can bear
_SUITE = "suite.yaml"


@dataclass
class _Progress:
    """What is known while cells run: their records, and where a fine-tuned model or a control lies by its key."""

    folder: Path
    suite: LoadedSuite
    records: dict[str, CellRecord]
    made: dict[str, RunFolder] = field(default_factory=dict)
    ran: list[float] = field(default_factory=list)  # seconds of each cell that was run now

    def write(self) -> SuiteRecord:
        """Write suite.json."""
        suite = self.suite.suite
        record = SuiteRecord(title=suite.title, notes=suite.notes, cells=list(self.records.values()))
        write_text(self.folder / RECORD, record.model_dump_json(indent=2) + "\n")
        return record

    def note(self, cell: Cell, state: State, reason: str | None = None) -> None:
        """Record what became of a cell."""
        self.records[cell.name] = _record(cell, state, reason)
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
    HFCompressError when `output` holds something else, RecipeError when `only` names nothing there is.
    """
    chosen = _chosen(suite, only)
    folder, reporter = Path(output), reporter or Reporter()
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
    """Return where things stand in `folder`; only a suite's own folder is written to."""
    if folder.exists() and any(folder.iterdir()) and not (folder / RECORD).exists():
        raise HFCompressError(
            f"{folder} exists and is not a comparison's: choose another --output, nothing was touched"
        )
    if fresh:
        shutil.rmtree(folder / CELLS, ignore_errors=True)
    records = {
        cell.name: _record(cell, State.DONE if _is_done(cell, folder) else State.WAITING) for cell in suite.cells
    }
    progress = _Progress(folder, suite, records)
    for cell in suite.cells:
        if records[cell.name].state is State.DONE:
            _remember(cell, progress)
    write_text(folder / _SUITE, suite.text)
    progress.write()
    return progress


def _record(cell: Cell, state: State, reason: str | None = None) -> CellRecord:
    return CellRecord(
        name=cell.name,
        model=cell.model,
        method=cell.method,
        category=cell.category,
        seed=cell.seed,
        state=state,
        reason=reason,
    )


def _is_done(cell: Cell, folder: Path) -> bool:
    try:
        return read_result(folder / CELLS / cell.name).recipe_hash == cell.loaded.hash
    except MeasureError:
        return False


def _remaining(progress: _Progress, cells: int) -> str:
    if not progress.ran:
        return ""
    minutes = cells * sum(progress.ran) / len(progress.ran) / 60
    return f" (at this pace {minutes:.0f} more minutes)"


def _run(cell: Cell, progress: _Progress, reporter: Reporter) -> None:
    run = _prepared(cell, progress)
    started = time.perf_counter()
    status, words = _in_a_process(cell, run)
    if status == _INTERRUPTED:
        raise KeyboardInterrupt
    progress.ran.append(time.perf_counter() - started)
    if status in (_DONE, _UNMET):
        progress.note(cell, State.DONE)
        _remember(cell, progress)
        return
    (run.path / "result.json").unlink(missing_ok=True)  # of a run that failed after it: no repeat takes it for done
    reason = _reason(status, words)
    progress.note(cell, State.FAILED, reason)
    reporter.say(f"[red]failed:[/] {reason}")


def _prepared(cell: Cell, progress: _Progress) -> RunFolder:
    """Open the cell's run folder, and put into it what other cells made that is the same for this one."""
    path = progress.folder / CELLS / cell.name
    run = open_folder(path, cell.loaded, resume=holds(path, cell.loaded))
    for key, part in ((cell.baseline_key, "baseline"), (cell.control_key, "control")):
        if key is not None and key in progress.made:
            progress.made[key].share(run, part)
    return run


def _remember(cell: Cell, progress: _Progress) -> None:
    run = RunFolder(progress.folder / CELLS / cell.name)
    for key in (cell.baseline_key, cell.control_key):
        if key is not None:
            progress.made.setdefault(key, run)


def _in_a_process(cell: Cell, run: RunFolder) -> tuple[int, str]:
    """Run the cell's recipe as anybody would; what it says on stderr is passed on, and its last lines returned."""
    recipe = run.path.parent / f"{run.path.name}.yaml"
    write_text(recipe, cell.loaded.text)
    command = [sys.executable, "-m", "hfcompress.cli", "run", str(recipe), "--output", str(run.path), "--resume"]
    for item in cell.loaded.overrides:
        command += ["--set", item]
    words = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, bufsize=0) as child:
        try:
            while child.stderr and (chunk := child.stderr.read(_CHUNK)):
                text = chunk.decode(errors="replace")
                sys.stderr.write(text)
                words = (words + text)[-_TAIL:]
        except KeyboardInterrupt:  # the terminal has sent it to the run as well, which saves what it has
            child.wait()
            raise
    return child.returncode, words


def _reason(status: int, words: str) -> str:
    """Return why a run failed: its own message, else how it ended."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", words)
    _, found, message = text.rpartition("error: ")
    if found:
        return textwrap.shorten(message, _REASON, placeholder=" …")
    if status < 0:
        return f"ended by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    last = text.split("\n")[-1] if not text.strip() else text.strip().splitlines()[-1]
    return f"exit status {status}: {last or 'it said nothing'}"
