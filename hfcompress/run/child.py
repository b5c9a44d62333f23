"""A recipe run in a process of its own, as anybody would run it, and why it failed if it did."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from ..core.errors import HFCompressError
from ..core.files import write_text
from ..recipe.load import LoadedRecipe
from .folder import RunFolder, holds, open_folder
from .setup import open_recipe
from .shelf import Shelf

_DONE, _UNMET, _INTERRUPTED = 0, 3, 130  # exit statuses of `hfcompress run`
_CHUNK, _TAIL = 4096, 20_000  # bytes passed on at once; characters of a run's stderr kept to find the reason in
_REASON = 300  # characters of it that a table can bear


def execute(loaded: LoadedRecipe, path: Path, shelf: Shelf, *, quiet: bool = False) -> str | None:
    """Run the recipe into the folder `path`, going on where it stopped before; return why it failed, or None.

    What `shelf` has for it is not made again. A run of another recipe there is deleted once this one is known to fit
    its model and data. `quiet`: only numbers are wanted, so what it says is not passed on, and it writes no card.
    Raises KeyboardInterrupt when the run was interrupted.
    """
    try:
        run = _prepared(loaded, path, shelf)
    except HFCompressError as error:
        return _shortened(str(error))
    status, words = _in_a_process(loaded, run, quiet=quiet)
    if status == _INTERRUPTED:
        raise KeyboardInterrupt
    if status in (_DONE, _UNMET):
        return None
    (run.path / "result.json").unlink(missing_ok=True)  # of a run that failed after it: no repeat takes it for done
    return _reason(status, words)


def _prepared(loaded: LoadedRecipe, path: Path, shelf: Shelf) -> RunFolder:
    resume = holds(path, loaded)
    with open_folder(path, loaded, resume=resume, overwrite=True) as run:
        if run.has_work() and not resume:
            open_recipe(loaded)
        run.begin(loaded, resume=resume)
        shelf.fill(run, loaded.recipe)
    return run


def _in_a_process(loaded: LoadedRecipe, run: RunFolder, *, quiet: bool = False) -> tuple[int, str]:
    """Return the exit status and the last words on stderr, which are passed on as they come unless `quiet`."""
    recipe = run.path.parent / f"{run.path.name}.yaml"
    write_text(recipe, loaded.text)
    command = [sys.executable, "-m", "hfcompress.cli", "run", str(recipe), "--output", str(run.path), "--resume"]
    for item in loaded.overrides:
        command += ["--set", item]
    words = ""
    command += ["--no-card"] * quiet
    said = subprocess.DEVNULL if quiet else None
    with subprocess.Popen(command, stdout=said, stderr=subprocess.PIPE, bufsize=0) as child:
        try:
            while child.stderr and (chunk := child.stderr.read(_CHUNK)):
                text = chunk.decode(errors="replace")
                if not quiet:
                    sys.stderr.write(text)
                words = (words + text)[-_TAIL:]
        except KeyboardInterrupt:  # the terminal has sent it to the run as well, which saves what it has
            child.wait()
            raise
    return child.returncode, words


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
