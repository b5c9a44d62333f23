"""How a model's tensors are to lie in a file, which changes nothing of what they are in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.families import label_layers
from ..ops.coding import encode
from .joined import joined_names

_MARK = "coded_at_rest"
SAVING = 256  # bytes below which coding a tensor is not worth an entry in the config


def code_at_rest_(model: nn.Module) -> None:
    """Let every save of `model` store its tensors entropy-coded where that takes fewer bytes."""
    setattr(model, _MARK, True)


def leave_at_rest_(model: nn.Module) -> None:
    """Let saves of `model` store its tensors as they are in memory again."""
    vars(model).pop(_MARK, None)


def coded_at_rest(model: nn.Module) -> bool:
    """Say whether `code_at_rest_` was called, or the model was loaded from a file that is coded."""
    return bool(getattr(model, _MARK, False))


def code_widths(model: nn.Module) -> Mapping[str, int]:
    """Return, by tensor name, the bits of one number in each packed stream, for widths that are whole bits."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, width in getattr(module, "packed_widths", {}).items():
            found[f"{path}.{name}"] = width
    return {name: width for name, width in found.items() if isinstance(width, int)}


def codable(model: nn.Module) -> set[str]:
    """Return the names of parameters that lie in a file as they are in memory.

    Others, that transformers cuts or joins in between, can't be coded, nor those a foreign parametrization computes a
    weight from, which it does while they are loaded. Layers that give the labels are not: a stream
    does not show that it is of another number of labels, and the head could not be exchanged while loading.
    """
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    patterns, heads = joined_names(model), tuple(f"{path}." for path in label_layers(model))
    names = {n for n in names if not n.startswith(heads) and ".parametrizations." not in n}
    return {n for n in names if not any(pattern.search(n) for pattern in patterns)}


class Streams:
    """The coded streams of tensors that get smaller by it; tensors that share memory share their stream."""

    def __init__(self, widths: Mapping[str, int], forced: Iterable[str] = (), *, all_that_shrink: bool = True) -> None:
        """Take the widths of packed streams by name, and the tensors to code even if they don't get smaller."""
        self._widths, self._forced, self._all = widths, frozenset(forced), all_that_shrink
        self._made: dict[tuple[int, torch.Size, torch.dtype], Tensor | None] = {}

    def of(self, name: str, tensor: Tensor) -> Tensor | None:
        """Return the stream of a tensor, or None when it stays as it is."""
        key = (tensor.data_ptr(), tensor.shape, tensor.dtype)
        if key not in self._made:
            self._made[key] = self._smaller(name, tensor)
        return self._made[key]

    def _smaller(self, name: str, tensor: Tensor) -> Tensor | None:
        forced = name in self._forced
        if tensor.is_meta or not (forced or (self._all and tensor.nbytes > SAVING)):
            return None
        stream = encode(tensor, self._widths.get(name))
        return stream if forced or stream.nbytes + SAVING < tensor.nbytes else None


def coded_bytes(model: nn.Module) -> tuple[int, int, int]:
    """Return how many parameters get smaller by coding, and their bytes before and after, shared ones once.

    NotImplementedError for parameters without values.
    """
    streams, names, counts = Streams(code_widths(model)), codable(model), (0, 0, 0)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise NotImplementedError("shapes without values, as in a plan of a large model, say nothing of entropy")
        if name in names and (stream := streams.of(name, parameter.detach())) is not None:
            counts = counts[0] + 1, counts[1] + parameter.nbytes, counts[2] + stream.nbytes
    return counts
