"""Folding a factor per channel between two layers, where that leaves the model as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.answers import logits_of, named, tensors_of
from .chains import Batch, hooks
from .matrix import set_matrix_
from .packed import weight_matrix

_SAME = 1e-4  # of the largest output: what a fold may change by rounding


@dataclass(frozen=True)
class Fold:
    """What writes channels (a norm, or a linear layer), and the linear layers that read them."""

    writer: str
    readers: tuple[str, ...]


def norm_folds(model: nn.Module, batch: Batch, paths: Sequence[str]) -> list[Fold]:
    """Return a fold for each norm whose output is what layers of `paths` read, as one pass over `batch` shows."""
    norms = [path for path, module in model.named_modules() if _is_norm(module)]
    read: dict[int, list[str]] = {}
    written: dict[str, Tensor] = {}
    alive: list[Any] = []  # an id means nothing once its tensor is gone
    handles = [
        model.get_submodule(path).register_forward_hook(lambda _, __, out, path=path: written.update({path: out}))
        for path in norms
    ]
    try:
        with torch.no_grad(), hooks(model, paths, lambda path, call: _note(read, alive, path, call.hidden)):
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return [Fold(norm, tuple(read[id(out)])) for norm, out in written.items() if id(out) in read]


@torch.no_grad()
def fold_(model: nn.Module, fold: Fold, s: Tensor, batch: Mapping[str, Any]) -> bool:
    """Divide what the writer gives by `s` (channels,) and multiply the readers' columns by it, in place.

    Taken back, to the bit, when the model then answers `batch` otherwise: something else reads those channels too, such
    as a residual connection. Says whether it was kept.
    """
    before = _answer(model, batch)
    changed = list(_tensors(model, fold))
    kept = [tensor.clone() for tensor in changed]
    writer = model.get_submodule(fold.writer)
    _divide_(writer, s)
    for path in fold.readers:
        reader = model.get_submodule(path)
        set_matrix_(reader, weight_matrix(reader) * s)
    if (_answer(model, batch) - before).abs().max() <= _SAME * before.abs().max():
        return True
    for tensor, old in zip(changed, kept, strict=True):
        tensor.copy_(old)
    return False


def _note(read: dict[int, list[str]], alive: list[Any], path: str, x: Any) -> None:
    alive.append(x)
    read.setdefault(id(x), []).append(path)


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and isinstance(weight, nn.Parameter) and weight.ndim == 1


def _divide_(writer: nn.Module, s: Tensor) -> None:
    weight: Any = writer.weight
    if _is_norm(writer):
        weight.div_(s)
    else:
        set_matrix_(writer, weight_matrix(writer) / s[:, None])
    if getattr(writer, "bias", None) is not None:
        writer.bias.div_(s)  # type: ignore[operator]


def _tensors(model: nn.Module, fold: Fold) -> Iterator[Tensor]:
    for path in (fold.writer, *fold.readers):
        yield from model.get_submodule(path).parameters(recurse=False)


def _answer(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    output = model(**batch)
    logits = logits_of(named(output, batch))
    return (next(tensors_of(output)) if logits is None else logits).float()
