"""Training batches that are made in another way than those evaluated on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import nn

from ..modules.seen import takes_labels

SOFT_LABELS = "soft_labels"  # (batch, classes): how much of each label an example has, in place of `labels`


class Waiting:
    """Measures, entered for each batch, how long training waits for it; the first, which opens workers, is left out."""

    def __init__(self) -> None:
        self._began = self._entered = self._left = 0.0
        self._waited = 0.0

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._left = time.perf_counter()
        if self._began:
            self._waited += self._left - self._entered
        else:
            self._began = self._left

    @property
    def share(self) -> float:
        """The share of the time, from the first batch to the last, that was spent waiting; 0 for less than two."""
        return self._waited / (self._left - self._began) if self._left > self._began else 0.0


class TrainingBatchesMixin:
    """Gives a Trainer class the argument `train_collator`: what makes training batches, by default `data_collator`."""

    data_collator: Any
    model: Any
    label_names: list[str]
    _train_collator: Callable[[list[Any]], Any] | None = None

    def __init__(
        self, *positional: Any, train_collator: Callable[[list[Any]], Any] | None = None, **named: Any
    ) -> None:
        self._train_collator = train_collator
        self.waiting = Waiting()
        super().__init__(*positional, **named)
        if isinstance(self.model, nn.Module) and not takes_labels(self.model) and not self.label_names:
            self.label_names = ["labels"]  # what the loss is computed from outside of the model

    def get_batch_samples(self, *positional: Any, **named: Any) -> Any:
        """Return the batches of the next step as the Trainer does, and note how long that took."""
        with self.waiting:
            return super().get_batch_samples(*positional, **named)  # type: ignore[misc]

    @property
    def train_collator(self) -> Any:
        """What makes a batch of training examples."""
        return self.data_collator if self._train_collator is None else self._train_collator

    def get_train_dataloader(self) -> Any:
        """Return the Trainer's loader, with the collator for training."""
        plain, self.data_collator = self.data_collator, self.train_collator
        try:
            return super().get_train_dataloader()  # type: ignore[misc]
        finally:
            self.data_collator = plain

    def get_calibration_dataloader(self) -> Any:
        """Return the Trainer's loader of training examples as they are evaluated on."""
        return super().get_train_dataloader()  # type: ignore[misc]
