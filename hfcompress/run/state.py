"""What the steps of a run share, and what they take over from an earlier, interrupted run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..checkpoint import load_model, release_
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
    run: Run, folder: Path, heading: str, execute: Callable[[], nn.Module], instead: nn.Module | None = None
) -> nn.Module:
    """Return the model an earlier, interrupted run left in `folder`, or make it now.

    A model that the one in the folder stands `instead` of gives its memory back first.
    """
    if (folder / "config.json").exists():
        run.reporter.heading(heading, "(done before)")
        if instead is not None:
            release_(instead)
        return load_model(folder, run.setup.task.auto_class, dtype=run.setup.recipe.dtype)
    run.reporter.heading(heading)
    return execute()
