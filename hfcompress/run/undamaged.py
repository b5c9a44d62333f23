"""Whether a model's files are still those that were saved: every file and every part against its SHA-256."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.verify import damaged_parts, digests_of
from ..core.errors import CheckpointError
from ..measure.result import Result
from ..measure.size import checksum

_SHOWN = 5


def require_undamaged(folder: Path, result: Result | None) -> str:
    """Return what was compared, in words; `result` is that of the run which made the model in `folder`, if one did.

    The config holds a digest of every part of a compressed model, and a run's result one of every weight file. Raises
    CheckpointError that names what differs, and where there is nothing to compare with.
    """
    files = result.compressed.checksums if result else {}
    wrong = [name for name, told in files.items() if not _is(folder / name, told)]
    if wrong:
        raise CheckpointError(
            f"{folder}: {_list(wrong)} not what the run saved, by the SHA-256 in result.json. Download or copy it "
            "again; if it was meant to change, `hfcompress run … --resume` measures it anew."
        )
    parts = digests_of(folder)
    if parts is None and not files:
        raise CheckpointError(
            f"{folder} states no SHA-256 of its weights, and no result.json beside it does: there is nothing to "
            "compare with. Saving a compressed model anew gives it one; one that loads with transformers alone has it "
            "only in the result of its run."
        )
    if parts is not None and (damaged := damaged_parts(folder)):
        raise CheckpointError(
            f"{folder}: the weights of {_list(damaged)} not those that were saved, by the SHA-256 in config.json. "
            "Download or copy the weights again."
        )
    counts = [f"{len(files)} weight file(s) by result.json"] if files else []
    return " and ".join([*counts, *([f"{len(parts)} parts by config.json"] if parts is not None else [])])


def _is(file: Path, told: str) -> bool:
    return file.is_file() and checksum(file) == told


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more} {'is' if len(names) == 1 else 'are'}"
