"""Proof that a model still runs after a stage: one pass over the same batch before and after."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ModelError
from ..core.method import Method, Phase
from ..core.position_tables import longest_input
from ..core.synthetic_inputs import EXAMPLES, run, synthetic_batch
from ..modules.storage import Packed

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]
_LOSS = "loss"
_LOGITS = "logits"
_EXACT = (_LOGITS, "hidden_state", "pooler_output")  # a spectrogram, say, is as long as the model finds right


@dataclass(frozen=True)
class Output:
    """One tensor a model gives."""

    shape: tuple[int, ...]
    finite: bool


class ForwardCheck:
    """Holds what a model gave before its stage, and compares what it gives afterwards."""

    def __init__(self, model: nn.Module, methods: Iterable[Method], batch: Batch | None = None) -> None:
        """Run the model once, on the beginning of `batch` or, without one that it takes, on a made-up batch.

        Where nothing can be made that the model takes, a warning says that it will not be checked.
        """
        methods = list(methods)
        self._new_inputs = any(method.needs.processor for method in methods)
        self._longest, self._shorter = _longest(model), False  # shorter: the batch was cut to fewer positions
        self._new_shapes = any(method.info.phase is Phase.STRUCTURE for method in methods)
        self._batch: Batch | None = None
        self._before: dict[str, Output] | None = None
        if any(parameter.is_meta for parameter in model.parameters()):
            return
        self._batch = None if batch is None or self._new_inputs else beginning(batch)
        self._before = None if self._batch is None else _try(model, self._batch)
        if self._before is None:
            self._batch, error = synthetic_batch(model)
            self._before = None if self._batch is None else _answer(model, self._batch)
            if self._before is None:
                logger.warning(
                    "not checked: whether this %s still runs once compressed; no inputs that it takes could be made%s. "
                    "Hand over a batch as `calibration` to have it checked",
                    type(model).__name__,
                    f" ({_brief(error)})" if error is not None else "",
                )

    def verify(self, model: nn.Module, done: str) -> None:
        """Raise ModelError if after `done` the model fails, gives numbers that are not finite, or other shapes."""
        if self._before is None or self._batch is None:
            return
        try:
            after = self._after(model)
        except Exception as error:  # whatever a model that was changed wrongly raises
            raise ModelError(f"after {done} this {type(model).__name__} no longer runs: {_brief(error)}") from error
        if wrong := self._difference(self._before, after):
            raise ModelError(f"after {done} {wrong}")

    def _after(self, model: nn.Module) -> dict[str, Output]:
        batch = self._batch
        if self._new_inputs:  # the vocabulary, or the size of images, is another one now
            batch, error = synthetic_batch(model)
            if batch is None:
                raise error or RuntimeError("it takes no inputs")
        if batch is not None and (longest := _longest(model)) < self._longest:
            self._shorter, batch = True, _first_tokens(batch, longest)
        return _answer(model, batch or {})

    def _difference(self, before: dict[str, Output], after: dict[str, Output]) -> str:
        for name, old in before.items():
            new = after.get(name)
            if new is None:
                return f"the model gives no {name} any more"
            if old.finite and not new.finite:
                return f"the model's {name} are not finite any more"
            if not self._fits(name, old.shape, new.shape):
                return f"the model's {name} have another shape, {new.shape}, than before, {old.shape}"
        return ""

    def _fits(self, name: str, old: tuple[int, ...], new: tuple[int, ...]) -> bool:
        if self._new_inputs:
            return len(old) == len(new)
        if self._shorter:
            return len(old) == len(new) and old[:1] == new[:1]
        exact = (_LOGITS,) if self._new_shapes else _EXACT  # what is inside a model may get narrower, or shorter
        if any(part in name for part in exact):
            return old == new
        return len(old) == len(new) and old[:1] == new[:1]


def beginning(batch: Batch) -> Batch:
    """Return the first examples of a batch; all of it where its tensors do not have one row per example."""
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    rows = {value.shape[:1] for value in tensors}
    if len(rows) != 1 or not tensors[0].ndim:
        return batch
    return {key: value[:EXAMPLES] if isinstance(value, Tensor) else value for key, value in batch.items()}


def _longest(model: nn.Module) -> int:
    """Return how many tokens the model takes; 0 where that is not known or not limited."""
    config: Any = getattr(model, "config", None)
    return longest_input(config) if hasattr(config, "model_type") else 0


def _first_tokens(batch: Batch, longest: int) -> Batch:
    """Return what a model of so many positions reads of a batch of texts."""
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or not ids.ndim or not 0 < longest < ids.shape[-1]:
        return batch
    rows = ids.shape
    return {
        key: value[..., :longest] if isinstance(value, Tensor) and value.shape == rows else value
        for key, value in batch.items()
    }


def _try(model: nn.Module, batch: Batch) -> dict[str, Output] | None:
    try:
        return _answer(model, batch)
    except Exception as error:  # a user's own batch that does not fit: the method that reads it says so
        logger.debug("the model does not take the batch it was given: %s", error)
        return None


def _answer(model: nn.Module, batch: Batch) -> dict[str, Output]:
    """Return the float tensors among what a model gives for a batch, by name or position."""
    given = run(model, batch)
    for module in model.modules():
        if isinstance(module, Packed):
            module.forget()  # what it widened for this pass
    if isinstance(given, Tensor):
        given = {"output": given}
    elif not isinstance(given, Iterable):  # an object of the user's own
        given = dict(getattr(given, "__dict__", {}))
    items = given.items() if isinstance(given, Mapping) else ((f"output {i}", value) for i, value in enumerate(given))
    return {
        str(name): Output(tuple(value.shape), bool(torch.isfinite(value).all()))
        for name, value in items
        if isinstance(value, Tensor) and value.is_floating_point() and name != _LOSS
    }


def _brief(error: Exception | None) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
