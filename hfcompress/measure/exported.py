"""Whether an exported file is still that of its checkpoint: told by contents, as times lie after a copy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..export.cpu import needs_reduced_range
from ..export.notes import made_with
from ..export.opening import MADE_OF
from ..export.runtime import Source, engine
from .batches import batch_files
from .size import checksum, local_folder, weight_files

CALIBRATION = "calibration"


def digests(source: Source) -> dict[str, Any]:
    """Return the SHA-256 of the config, of each weight file, and of each file of the calibration, [] for none."""
    folder = local_folder(source.checkpoint, source.revision)
    config = {"config.json": checksum(file)} if (file := folder / "config.json").is_file() else {}
    weights = {name: checksum(folder / name) for name in weight_files(folder)}
    examples = batch_files(source.calibration) if source.calibration else []
    return {"files": config | weights, CALIBRATION: [checksum(file) for file in examples]}


def stale(source: Source, engines: Sequence[str], image_size: int | None) -> list[str]:
    """Return the engines whose exported file is missing, or made of other files or with other settings than here.

    Examples it was calibrated on count where `source` names some.
    """
    found = {name: _record(source, name) for name in engines}
    if not any(found.values()):
        return list(engines)
    wanted = {**digests(source), **made_with(image_size, needs_reduced_range())}
    return [name for name in engines if not _same(found[name], wanted, compares=engine(name).calibrated)]


def _record(source: Source, name: str) -> dict[str, Any]:
    """Return what the file says it was made of; nothing of a file that is not ours, not there or damaged."""
    file = Path(source.exports or source.checkpoint) / str(engine(name).file)
    try:
        return dict(json.loads(engine(name).note(file, MADE_OF)))
    except Exception:  # whatever the readers of several formats raise: it is made anew
        return {}


def _same(found: Mapping[str, Any], wanted: Mapping[str, Any], *, compares: bool) -> bool:
    ignored = () if compares and wanted[CALIBRATION] else (CALIBRATION,)
    return all(found.get(key) == value for key, value in wanted.items() if key not in ignored)
