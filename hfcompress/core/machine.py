"""What this machine is."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


def cpu_info(key: str) -> str:
    """Return the first value of `key` in /proc/cpuinfo, empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def waited_ns() -> int:
    """Return how long this process's threads were ready but had no processor; 0 where the system does not tell."""
    waited = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that ended meanwhile
            waited += int(task.read_text(encoding="ascii").split()[1])
    return waited


class Stopwatch:
    """Times what follows its making, and how far other processes held it up."""

    def __init__(self) -> None:
        self._started, self._ran, self._waited = time.monotonic(), time.process_time(), waited_ns()

    @property
    def seconds(self) -> float:
        """Seconds on the clock."""
        return time.monotonic() - self._started

    @property
    def waiting(self) -> float:
        """Of the processor time its threads were ready for, the share they did not get, in [0, 1]."""
        waited, ran = (waited_ns() - self._waited) / 1e9, time.process_time() - self._ran
        return max(waited, 0.0) / max(waited + ran, 1e-9)
