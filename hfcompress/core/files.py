"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from .disk import disk_is_full
from .errors import HFCompressError, WriteError

UNFINISHED = ".unfinished"  # how the name of what is being written ends, until it gets its own


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that replaces it on success and vanishes on failure.

    Raises WriteError, in place of what the system or a library says, when the folder cannot be written or is full.
    """
    path = Path(path)
    with saying_where(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            share_(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` on success and vanishes on failure; raises WriteError."""
    folder = Path(folder)
    with saying_where(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = unfinished_folder(folder)
        try:
            yield temporary
            remove(folder)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def unfinished_folder(place: Path) -> Path:
    """Make an empty folder beside `place`, for what is to lie there, and return it."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=UNFINISHED, dir=place.parent))
    share_(temporary)
    return temporary


def remove(path: Path) -> None:
    """Remove a file or folder, if there is one; a folder vanishes at once, whole, however long its files take."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    gone = unfinished_folder(path)
    with contextlib.suppress(OSError):  # where something is mounted at `path`, its files can only go one by one
        path.rename(gone)
        path = gone
    for folder in {path, gone}:
        shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(folder: Path, *, unused_s: float = 0.0) -> None:
    """Remove what a process that was killed left half-written in `folder` and those in it.

    unused_s: seconds since the last change, for a folder that other processes may be writing into.
    """
    for path in list(folder.rglob(f".*{UNFINISHED}")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime >= unused_s:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def share_(path: Path) -> None:
    """Give a file or folder that was made for its owner alone the mode that any other gets."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


@contextlib.contextmanager
def saying_where(path: Path) -> Iterator[None]:
    """Raise WriteError that names `path` in place of an OSError, or of whatever says that the disk is full."""
    try:
        yield
    except HFCompressError:
        raise
    except Exception as error:
        if isinstance(error, (OSError, SafetensorError)) or disk_is_full(error):
            raise WriteError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}", path) from error
        raise


def require_writable(path: str | Path) -> None:
    """Raise WriteError when no file can be put at `path`: before what it is to hold is worked out."""
    path = Path(path)
    with saying_where(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def between(text: str, name: str, new: str) -> str:
    """Return `text` with `new` between its markers ``<!-- name -->`` and ``<!-- /name -->``; ValueError without."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"there is no {begin} … {end} to write to")
    return f"{head}{begin}\n{new}\n{end}{tail}"
