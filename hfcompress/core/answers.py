"""What a model answers with, in one form, whatever it gives: by name, as a tuple, or as a tensor alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def answering_by_name(*models: nn.Module | None) -> Iterator[None]:
    """Let transformers' models answer by name meanwhile, though their config says `return_dict=False`."""
    changed = [config for model in models if model is not None for config in _answering_in_tuples(model)]
    for config in changed:
        config.return_dict = True
    try:
        yield
    finally:
        for config in changed:
            config.return_dict = False


def named(outputs: Any, batch: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Return what a model answered on `batch` by name.

    A tuple begins with the loss, a single number, where the batch has labels; then come the logits. What follows has no
    name that is known here, and is left out.
    """
    if isinstance(outputs, Mapping):
        return outputs
    if isinstance(outputs, Tensor):
        return {"logits": outputs}
    if not isinstance(outputs, tuple | list):
        return {name: value for name, value in vars(outputs).items() if value is not None}
    found: dict[str, Any] = {}
    rest = list(outputs)
    if rest and "labels" in (batch or {}) and isinstance(rest[0], Tensor) and rest[0].numel() == 1:
        found["loss"] = rest.pop(0)
    if rest and isinstance(rest[0], Tensor):
        found["logits"] = rest[0]
    return found


def tensors_of(outputs: Any) -> Iterator[Tensor]:
    """Yield every tensor in what a model answered, in order."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from tensors_of(value)
    elif isinstance(outputs, tuple | list):
        for value in outputs:
            yield from tensors_of(value)


def logits_of(outputs: Mapping[str, Any]) -> Tensor | None:
    """Return the logits of a named answer, None where it has none.

    Where an answer to a question begins and where it ends are two rows of each example, (batch, 2, length).
    """
    if "start_logits" in outputs and "end_logits" in outputs:
        return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=1)
    found: Tensor | None = outputs.get("logits")
    return found


def _answering_in_tuples(model: nn.Module) -> list[Any]:
    """Return the configs, the model's own and those of its parts, that ask for tuples."""
    own: Any = getattr(model, "config", None)
    if getattr(own, "return_dict", None) is not False:
        return []
    configs = {id(c): c for c in (getattr(module, "config", None) for module in model.modules()) if c is not None}
    return [config for config in configs.values() if getattr(config, "return_dict", None) is False]
