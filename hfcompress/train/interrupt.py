"""Ctrl-C during training: finish the step, write a checkpoint, and stop."""

from __future__ import annotations

import signal
import threading
from typing import Any

from transformers import TrainerCallback


class SaveOnInterrupt(TrainerCallback):
    """Turns the first Ctrl-C into a checkpoint after the running step; a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> SaveOnInterrupt:
        """Listen for Ctrl-C; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave Ctrl-C as it was."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint once an interrupt was seen."""
        control.should_save = control.should_save or self.requested

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop once the checkpoint is written."""
        if self.requested:
            raise KeyboardInterrupt

    def _on_signal(self, signum: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
