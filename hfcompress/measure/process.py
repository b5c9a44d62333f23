"""Starting a worker and listening to it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import MeasureError
from ..core.scratch import scratch_folder

Progress = Callable[[str, float], None]

WORKER = Path(__file__).with_name("worker.py")
TAIL = 12  # lines of a failed worker's stderr worth showing
LIMIT_S = 3600.0


def quietly(text: str, fraction: float) -> None:
    """Ignore progress."""


def part(on_progress: Progress, index: int, count: int) -> Progress:
    """Return a callback for part `index` of `count` equal ones of what `on_progress` follows."""
    return lambda text, fraction: on_progress(text, (index + fraction) / count)


class WorkerProcess:
    """A running worker: `ask` it, and leave the ``with`` block to end it. MeasureError carries its last words."""

    def __init__(self, job: Mapping[str, Any], what: str) -> None:
        self.what = what
        self._kept = contextlib.ExitStack()
        path = self._kept.enter_context(scratch_folder()) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        self._stderr = path.with_name("stderr").open("w+b")
        # -P: without it the script's folder comes first in the path, and its modules hide the standard library's.
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env=worker_environment(job["threads"]) | compiling(path.with_name("compiled"), job["threads"]),
        )

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self._child.kill()
        self._child.communicate()
        self._stderr.close()
        self._kept.close()

    def ask(self, do: str, on_progress: Progress = quietly, limit_s: float = LIMIT_S, **values: Any) -> Any:
        """Return the worker's answer to a command; a worker that takes longer than `limit_s` is ended."""
        timer = threading.Timer(limit_s, self._child.kill)
        timer.start()
        try:
            return self._exchange(json.dumps({"do": do, **values}), on_progress)
        finally:
            timer.cancel()

    def _exchange(self, command: str, on_progress: Progress) -> Any:
        stdin, stdout = self._child.stdin, self._child.stdout
        if stdin is None or stdout is None:
            raise MeasureError(f"{self.what}: the worker process has no pipes")
        try:
            stdin.write(command + "\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise self._failure() from error
        for line in stdout:
            said = json.loads(line)
            if "result" in said:
                return said["result"]
            on_progress(self.what, said["fraction"])
        raise self._failure()

    def _failure(self) -> MeasureError:
        code = self._child.wait()
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace").strip().splitlines()[-TAIL:]
        return MeasureError(f"{self.what}: the worker process failed (exit status {code}):\n" + "\n".join(words))


def worker_environment(threads: int) -> dict[str, str]:
    """Return this process's environment with the threads set, no network, and the allocator as a user finds it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "OMP_", "MKL_", "KMP_"))}
    set_here = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    return {**kept, **set_here, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def compiling(cache: Path, threads: int) -> dict[str, str]:
    """Return what makes torch.compile start from nothing, as on the first use, and on the threads it is timed on."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": str(threads)}
