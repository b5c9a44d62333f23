"""A model as it stands, kept to be put back: its modules, their attributes, the values of its tensors, its config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig


class Snapshot:
    """Keeps a copy of a model's values, and of what its modules and config hold."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, type(module), _shallow(vars(module))) for module in model.modules()]
        self._configs = [(config, _shallow(vars(config))) for config in _configs(model)]
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._tensors = [(t, t.data, t.data.clone(), t.requires_grad) for t in tensors.values()]

    @torch.no_grad()
    def restore_(self) -> None:
        """Put all of it back, in the same objects."""
        for module, cls, held in self._modules:
            module.__class__ = cls
            _replace_(vars(module), held)
        for config, held in self._configs:
            _replace_(vars(config), held)
        for tensor, data, values, learns in self._tensors:
            tensor.data = data
            tensor.copy_(values)
            tensor.requires_grad_(learns)


def _configs(model: nn.Module) -> Iterator[Any]:
    """Yield every config of the model and its modules, those inside of others too, once."""
    waiting: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    seen: set[int] = set()
    while waiting:
        config = waiting.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in seen:
            seen.add(id(config))
            yield config
            waiting += vars(config).values()


def _shallow(held: dict[str, Any]) -> dict[str, Any]:
    return {name: value.copy() if isinstance(value, dict | list | set) else value for name, value in held.items()}


def _replace_(held: dict[str, Any], before: dict[str, Any]) -> None:
    held.clear()
    held.update(before)
