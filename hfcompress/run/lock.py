"""One process at a time writes into a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..core.errors import HFCompressError, LockedError
from ..core.files import UNFINISHED, remove_unfinished

try:
    import fcntl
except ImportError:  # a system without locks on files
    fcntl = None  # type: ignore[assignment]

LOCK = ".hfcompress.lock"


@contextlib.contextmanager
def sole_writer(folder: Path, mark: str, what: str) -> Iterator[None]:
    """Make `folder` and hold it for this process alone; the system lets go of it however the process ends.

    Raises HFCompressError, with nothing touched, when files lie there but not `mark`, which `what` would have, when it
    cannot be written, or when another process holds it.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        if not (new or (folder / mark).exists()) and any(_is_foreign(entry, mark) for entry in folder.iterdir()):
            raise HFCompressError(f"{folder} exists and is not {what}: choose another --output, nothing was touched")
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder / LOCK)
    except OSError as error:
        raise HFCompressError(f"cannot use {folder} as the output folder: {error.strerror}") from error
    try:
        remove_unfinished(folder)  # of one that was killed: nobody else writes here
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
            for place in new:
                place.rmdir()  # only where nothing came of it
        lock.close()


def _is_foreign(entry: Path, mark: str) -> bool:
    """Say whether something in a folder without its mark is not what one killed before it was written has left."""
    begun = entry.name.startswith(f".{mark}.") and entry.name.endswith(UNFINISHED)
    return entry.name != LOCK and not begun


def _lock(path: Path) -> IO[str]:
    """Return the open file, which is this process's as long as it is open; unlike `flock`, no process it forks has it.

    Its text is the number of the process.
    """
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # both are said by systems of one that is held
            file.seek(0)
            raise LockedError(
                f"another run (process {file.read().strip() or 'unknown'}) is writing into {path.parent}: wait until "
                "it ends, or choose another --output"
            ) from None
        except OSError:  # a disk without locks
            pass
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # else its holder has just removed it
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
                return file
        file.close()
