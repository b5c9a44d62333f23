"""Being asked to stop: Ctrl-C, SIGTERM (a scheduler, `docker stop`) and SIGHUP (a closed terminal) alike."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

WATCHED = "HFCOMPRESS_WATCHED"  # set where stdin tells of the parent
ASKING = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """Somebody asked this process to stop, by the signal of this number."""

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = int(signum)


def status_of(error: KeyboardInterrupt) -> int:
    """Return the exit status that a shell gives for what stopped a process: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + int(getattr(error, "signum", signal.SIGINT))


def signal_of(status: int) -> int | None:
    """Return the signal by which a child of this status was asked to stop; None where it ended otherwise."""
    return next((s for s in ASKING if status in (128 + s, -s)), None)


@contextlib.contextmanager
def on_request(do: Callable[[int], None]) -> Iterator[None]:
    """Call `do` with the signal's number when asked to stop; only the main thread can listen.

    A signal that is ignored, as SIGHUP under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in ASKING}
    heard = [s for s, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def handle(signum: int, frame: Any) -> None:
        do(signum)

    try:
        for s in heard:
            signal.signal(s, handle)
        yield
    finally:
        for s in heard:
            signal.signal(s, before[s])


def interrupt(signum: int) -> None:
    """Raise Interrupted, as Python raises KeyboardInterrupt."""
    raise Interrupted(signum)


def end_with_parent() -> None:
    """In a run that another command has started (see WATCHED), end at once when that one is killed.

    Its stdin is a pipe of which the parent holds the other end, and which says nothing until that is gone.
    """
    if os.environ.pop(WATCHED, None):
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os._exit(128 + signal.SIGKILL)
