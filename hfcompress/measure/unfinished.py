"""What a run folder without a result says of its run: that it did not finish, why, and how to go on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

MARK = "hfcompress-run.json"  # by it a folder is known as a run's
RECIPE = "recipe.yaml"
_KILLED = "Why is not known: it is still running, or was killed."


def read_mark(folder: Path) -> dict[str, Any]:
    """Return what a run folder's mark says of the run that began there; nothing where there is none."""
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def unfinished(folder: Path) -> str:
    """Return in words that the run in `folder`, or around this folder of a model, did not finish; "" where none is."""
    run = folder if (folder / MARK).is_file() else folder.parent
    if not (run / MARK).is_file() or (run / "result.json").exists() or (run != folder and folder.name != "model"):
        return ""
    mark = read_mark(run)
    stopped = mark.get("stopped")
    why = f"It stopped: {stopped}" if isinstance(stopped, str) else _KILLED
    return f"{run}: the run did not finish, so it has no result.json. {why}\nTo go on: {_command(run, mark)}"


def _command(run: Path, mark: dict[str, Any]) -> str:
    """Return the command that goes on with a run."""
    recipe = shlex.quote(str(run / RECIPE)) if (run / RECIPE).is_file() else "RECIPE"
    said = mark.get("overrides")
    values = [f" --set {shlex.quote(str(item))}" for item in said] if isinstance(said, list) else []
    return f"hfcompress run {recipe}{''.join(values)} --output {shlex.quote(str(run))} --resume"
