"""What the steps of a run share, and what they take over from an earlier, interrupted run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..checkpoint import is_whole, load_model, release_
from ..core.files import remove
from ..measure.result import StageRecord
from .folder import RunFolder
from .reporter import Reporter
from .setup import Setup

RECORD = "record.json"


@dataclass(frozen=True)
class Run:
    """What the steps of a run share."""

    setup: Setup
    folder: RunFolder
    reporter: Reporter


def kept(
    run: Run,
    folder: Path,
    heading: str,
    execute: Callable[[], nn.Module],
    *,
    instead: nn.Module | None = None,
    recorded: bool = False,
    rest: Sequence[Path] = (),
) -> nn.Module:
    """Return the model an earlier, interrupted run left in `folder`, or make it now.

    A model that the one in the folder stands `instead` of gives its memory back first. One that is damaged, or its
    record where it is `recorded`, is made again, and so is the `rest` that was made from it.
    """
    if (folder / "config.json").exists():
        if _is_done(folder, recorded=recorded):
            run.reporter.heading(heading, "(done before)")
            if instead is not None:
                release_(instead)
            return load_model(folder, run.setup.task.auto_class, dtype=run.setup.recipe.dtype)
        run.reporter.say(f"What lies in {folder} is damaged: it and what came of it are made again.", style="yellow")
        for path in (folder, *rest):
            remove(path)
    run.reporter.heading(heading)
    return execute()


def read_record(folder: Path) -> StageRecord:
    """Return what is recorded of the stage in `folder`; OSError or ValueError where that cannot be read."""
    return StageRecord.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))


def _is_done(folder: Path, *, recorded: bool) -> bool:
    try:
        return is_whole(folder) and (not recorded or bool(read_record(folder.parent)))
    except (OSError, ValueError):
        return False
