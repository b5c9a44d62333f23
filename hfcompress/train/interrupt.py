"""Asked to stop during training, by Ctrl-C or SIGTERM: finish the step, write a checkpoint, and stop."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

from transformers import TrainerCallback

from ..core.interrupt import interrupt, on_request


class SaveOnInterrupt(TrainerCallback):
    """Turns the first request to stop into a checkpoint after the running step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested: int | None = None  # the signal's number
        self._listening = contextlib.ExitStack()

    def __enter__(self) -> SaveOnInterrupt:
        """Listen for requests to stop."""
        self._listening.enter_context(on_request(self._on_signal))
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the signals as they were."""
        self._listening.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint once a request was seen."""
        control.should_save = control.should_save or self.requested is not None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop once the checkpoint is written."""
        if self.requested is not None:
            interrupt(self.requested)

    def _on_signal(self, signum: int) -> None:
        # A scheduler repeats SIGTERM, or sends it to every process of a group: that is no hurry.
        if self.requested is not None and signum == signal.SIGINT:
            interrupt(signum)
        self.requested = self.requested or signum
