"""A recipe run in a process of its own, as anybody would run it, and why it failed if it did."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

from ..core.disk import disk_is_full
from ..core.errors import HFCompressError, LockedError
from ..core.files import write_text
from ..core.interrupt import WATCHED, Interrupted, on_request, signal_of
from ..recipe.load import LoadedRecipe
from .folder import RunFolder, holds, open_folder
from .setup import open_recipe
from .shelf import Shelf

AGAIN = "repeat the command: what is done is kept"

_DONE, _MISTAKE, _UNMET = 0, 2, 3  # exit statuses of `hfcompress run`
_CHUNK, _TAIL = 4096, 20_000  # bytes passed on at once; characters of a run's stderr kept to find the reason in
_ENDING_S, _POLL_S = 30.0, 0.1  # seconds that a run whose parent was killed may take to notice
_REASON = 300  # characters of it that a table can bear


def execute(loaded: LoadedRecipe, path: Path, shelf: Shelf, *, quiet: bool = False) -> str | None:
    """Run the recipe into the folder `path`, going on where it stopped before; return why it failed, or None.

    What `shelf` has for it is not made again. A run of another recipe there is deleted once this one is known to fit
    its model and data. `quiet`: only numbers are wanted, so what it says is not passed on, and it writes no card.
    Raises KeyboardInterrupt when the run was interrupted, DiskFullError when it ended because a disk is full.
    """
    try:
        run = _prepared(loaded, path, shelf)
    except HFCompressError as error:
        if disk_is_full(error):
            raise
        return _shortened(str(error))
    status, words = _in_a_process(loaded, run, quiet=quiet)
    if (signum := signal_of(status)) is not None:
        raise Interrupted(signum)
    if status in (_DONE, _UNMET):
        return None
    (run.path / "result.json").unlink(missing_ok=True)  # of a run that failed after it: no repeat takes it for done
    failure = HFCompressError(_reason(status, words))
    if status == _MISTAKE and disk_is_full(failure):  # nor would any other run get further
        raise failure
    return str(failure)


def _prepared(loaded: LoadedRecipe, path: Path, shelf: Shelf) -> RunFolder:
    resume = holds(path, loaded)
    with _once_free(path, loaded, resume=resume) as run:
        if run.has_work() and not resume:
            open_recipe(loaded)
        run.begin(loaded, resume=resume)
        shelf.fill(run, loaded.recipe)
    return run


@contextlib.contextmanager
def _once_free(path: Path, loaded: LoadedRecipe, *, resume: bool) -> Iterator[RunFolder]:
    """Hold the run folder, once the run of a command that was just killed has ended: it watches for that."""
    deadline = time.monotonic() + _ENDING_S
    while True:
        try:
            with open_folder(path, loaded, resume=resume, overwrite=True) as run:
                yield run
            return
        except LockedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)


def _in_a_process(loaded: LoadedRecipe, run: RunFolder, *, quiet: bool = False) -> tuple[int, str]:
    """Return the exit status and the last words on stderr, which are passed on as they come unless `quiet`.

    Asked to stop, let the run save what it has, and raise Interrupted.
    """
    asked: list[int] = []
    recipe = run.path.parent / f"{run.path.name}.yaml"
    write_text(recipe, loaded.text)
    command = [sys.executable, "-m", "hfcompress.cli", "run", str(recipe), "--output", str(run.path), "--resume"]
    for item in loaded.overrides:
        command += ["--set", item]
    command += ["--no-card"] * quiet
    said = subprocess.DEVNULL if quiet else None
    with (
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {WATCHED: "1"},
        ) as child,
        on_request(lambda signum: _pass_on(child, signum, asked)),
    ):
        words = _listen(child, quiet=quiet)
    if asked:
        raise Interrupted(asked[0])
    return child.returncode, words


def _listen(child: subprocess.Popen[bytes], *, quiet: bool) -> str:
    """Return the last words of a run on stderr, once it ends."""
    words = ""
    while child.stderr and (chunk := child.stderr.read(_CHUNK)):
        text = chunk.decode(errors="replace")
        if not quiet:
            with contextlib.suppress(OSError):  # a terminal that is gone
                sys.stderr.write(text)
        words = (words + text)[-_TAIL:]
    return words


def _pass_on(child: subprocess.Popen[bytes], signum: int, asked: list[int]) -> None:
    """Ask a run to stop; not by Ctrl-C, which a terminal has told it itself, and twice of which would be in a hurry."""
    child.send_signal(signum if asked else signal.SIGTERM)
    asked.append(signum)


def _reason(status: int, words: str) -> str:
    """Return why a run failed: its own message, else how it ended."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", words)
    _, found, message = text.rpartition("error: ")
    if found:
        return _shortened(message)
    if status < 0:
        return f"ended by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    last = text.split("\n")[-1] if not text.strip() else text.strip().splitlines()[-1]
    return f"exit status {status}: {last or 'it said nothing'}"


def _shortened(message: str) -> str:
    return textwrap.shorten(message, _REASON, placeholder=" …")
