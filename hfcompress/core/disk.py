"""A full disk: how it is recognized, whichever library met it, and what the user is told."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import DiskFullError

_NUMBERS = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# What is said where no number comes with the error: by Rust (safetensors, tokenizers), torch, C++, numpy, SQLite, and
# the libraries that look for room before they write.
_WORDS = re.compile(
    r"no space left|disk quota exceeded|file too large|os error (28|27|122)\b|PytorchStreamWriter failed|"
    r"inline_container\.cc.*(unexpected pos|file write failed)|\d+ requested and \d+ written|disk is full|"
    r"not enough (free )?(disk )?space|basic_ios::clear|ios_base::failure",
    re.IGNORECASE | re.DOTALL,
)


def disk_is_full(error: BaseException) -> bool:
    """Return whether an error, or one that it came of, says that there is no room to write."""
    return any(
        (isinstance(cause, OSError) and cause.errno in _NUMBERS) or bool(_WORDS.search(str(cause)))
        for cause in _causes(error)
        if not isinstance(cause, (KeyboardInterrupt, SystemExit))
    )


@contextlib.contextmanager
def room_needed(folder: str | Path, how: str) -> Iterator[None]:
    """Raise DiskFullError, which says `how` to go on, in place of whatever a library raises where a disk is full."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise DiskFullError(full_disk(error, folder, how)) from error


def full_disk(error: BaseException, folder: str | Path, how: str) -> str:
    """Return what to tell of a full disk: what could not be written, how much is free there, and `how` to go on."""
    place = _place(error) or Path(folder)
    details = "; ".join(filter(None, (_reason(error), _free(place))))
    return f"the disk is full: cannot write {place} ({details}). Free some space, then {how}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and those that it came of."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _reason(error: BaseException) -> str:
    """Return what the system said: that the disk is full, that a quota is, or that a file would be too large."""
    for cause in _causes(error):
        said = re.search(r"os error (\d+)", str(cause))  # as Rust puts it
        number = cause.errno if isinstance(cause, OSError) else int(said[1]) if said else None
        if number in _NUMBERS:
            return os.strerror(number)
    return ""


def _place(error: BaseException) -> Path | None:
    """Return the file that could not be written, where an error names it."""
    for cause in _causes(error):
        place = getattr(cause, "place", None)  # of our own error, which knows what the file was to be called
        place = place or getattr(cause, "filename2", None) or getattr(cause, "filename", None)
        if isinstance(place, (str, Path)):
            return Path(place)
    return None


def _free(place: Path) -> str:
    """Return how much room there is, in words; nothing where that cannot be found out."""
    existing = next((p for p in (place, *place.absolute().parents) if p.exists()), Path())
    try:
        return f"{shutil.disk_usage(existing).free / 1e6:.1f} MB free there"
    except OSError:
        return ""
