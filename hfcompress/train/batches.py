"""Training batches that are made in another way than those evaluated on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..modules.seen import takes_labels

SOFT_LABELS = "soft_labels"  # (batch, classes): how much of each label an example has, in place of `labels`


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
        super().__init__(*positional, **named)
        if isinstance(self.model, nn.Module) and not takes_labels(self.model) and not self.label_names:
            self.label_names = ["labels"]  # what the loss is computed from outside of the model

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
