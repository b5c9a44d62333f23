"""A process, forked from this one, that is killed or whose disk is full at its n-th change of a folder."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hfcompress.measure import opening, quality, worker

KILLED = 9
_CHANGES = ("rename", "replace", "mkdir", "unlink", "rmdir", "link", "chmod")


class HereWorker:
    """Answers as a worker process does, in this one: none has to be started."""

    def __init__(self, job: Any, what: str) -> None:
        self.job, self.worker = json.loads(json.dumps(job)), None

    def __enter__(self) -> HereWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, do: str, on_progress: Any = None, limit_s: float = 0, **values: Any) -> Any:
        self.worker = self.worker or worker.Worker(self.job)
        return worker.COMMANDS[do](self.worker, lambda fraction: None, **values)


def no_workers(monkeypatch: Any) -> None:
    """Measure in this process."""
    for module in (quality, opening):
        monkeypatch.setattr(module, "WorkerProcess", HereWorker)


def forked(do: Callable[[], object], said: Path | None = None) -> int:
    """Return the exit status of `do` in a process of its own: 0, or 1 with the error's text in the file `said`."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)  # OpenMP waits for ever for threads that computed before, which are not here
            torch.set_num_threads = lambda _: None  # type: ignore[assignment]
            do()
            status = 0
        except BaseException as error:
            if said is not None:  # first the message: the disk may be full
                said.write_text(f"{type(error).__name__}: {error}\n")
                with said.open("a") as file:
                    file.write(traceback.format_exc())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Faults:
    """Counts what changes `folder` from here on, and at change number `at` ends the process, or fills the disk."""

    def __init__(self, folder: Path, at: int | None = None, *, full: bool = False) -> None:
        self.folder, self.at, self.full, self.seen, self.freed = str(folder), at, full, 0, 0
        for name in _CHANGES:
            setattr(os, name, self._counting(getattr(os, name)))
        self._open = io.open
        builtins.open = io.open = self._opened  # type: ignore[assignment]

    def _hit(self) -> None:
        self.seen += 1
        if self.at is None or self.seen < self.at:
            return
        if not self.full:
            os._exit(KILLED)
        raise OSError(errno.ENOSPC, "No space left on device")

    def _counting(self, change: Callable[..., Any]) -> Callable[..., Any]:
        frees = change.__name__ in ("unlink", "rmdir")

        def counted(*given: Any, **more: Any) -> Any:
            if any(str(place).startswith(self.folder) for place in given[:2]) and not (self.full and frees):
                self._hit()
                self.freed += frees
            return change(*given, **more)

        counted.__name__ = change.__name__
        return counted

    def _opened(self, place: Any, mode: str = "r", *given: Any, **more: Any) -> Any:
        writes = str(place).startswith(self.folder) and any(letter in mode for letter in "wax+")
        if writes:
            self._hit()
        file = self._open(place, mode, *given, **more)
        return _Half(file, self) if writes and not {"b", "+"} & set(mode) else file


class _Half:
    """A text file of which the last write before the end gets half done."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def write(self, text: str) -> int:
        if self._faults.at is not None and self._faults.seen + 1 >= self._faults.at:
            self._file.write(text[: len(text) // 2])
            self._file.flush()
        self._faults._hit()
        return self._file.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Half:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(*exception)

    def __iter__(self) -> Any:
        return iter(self._file)
