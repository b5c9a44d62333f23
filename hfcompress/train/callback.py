"""The callback that turns the Trainer's steps into a stage's progress."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..core.lifecycle import Lifecycle, State

logger = logging.getLogger(__name__)


def fraction(state: TrainerState) -> float:
    """Return how much of the training is done, from 0 to 1."""
    return min(1.0, state.global_step / state.max_steps) if state.max_steps else 0.0


class HFCompressCallback(TrainerCallback):
    """Sets the strength of a stage's methods; it keeps no state, all of that lives in the model."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self.lifecycle = lifecycle

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the strength to begin, or to resume, with."""
        self._set(kwargs["model"], state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set the strength after each optimizer step, before any evaluation or checkpoint of that step."""
        self._set(kwargs["model"], state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell of methods whose schedule training did not see to its end, as when a callback stops it."""
        early = [m.info.name for m in self.lifecycle.methods if not m.settled(fraction(state))]
        if early and self.lifecycle.state is State.PREPARED and state.is_world_process_zero:
            logger.warning(
                "training ended after %d of %d steps, before %s was at full strength: what is missing is done now, and "
                "nothing is trained after it",
                state.global_step,
                state.max_steps,
                " and ".join(early),
            )

    def _set(self, model: Any, state: TrainerState) -> None:
        if self.lifecycle.state is State.PREPARED:
            self.lifecycle.step(getattr(model, "module", model), fraction(state))
