"""Folders for what is not kept; those of a process that was killed are removed by the next that needs one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # a system without locks on files
    fcntl = None  # type: ignore[assignment]

_PREFIX, _HELD = "hfcompress-", "held"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder among the system's temporary ones, which vanishes in the end."""
    _remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        held, inside = _hold(Path(name)), Path(name) / "work"
        inside.mkdir()
        try:
            yield inside
        finally:
            if held is not None:
                held.close()


def _hold(folder: Path) -> IO[str] | None:
    """Lock a file in the folder, which the system lets go of however the process ends; return it, or None."""
    file = (folder / "new").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / "new").rename(folder / _HELD)  # only now can another process find it, and it is locked
    except (OSError, AttributeError):  # a system or a disk without locks
        file.close()
        return None
    return file


def _remove_abandoned() -> None:
    for mark in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_HELD}") if fcntl is not None else ():
        with contextlib.suppress(OSError), mark.open("r+") as file:  # held, or somebody else's
            if mark.stat().st_uid == os.getuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(mark.parent, ignore_errors=True)
