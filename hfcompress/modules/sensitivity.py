"""How much a model's answers change when weights are rounded, and what storing them so takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.answers import logits_of, named
from ..core.errors import DataError, TargetError
from ..core.progress import track
from ..ops.losses import answers, divergence
from ..ops.quantization import Clip, Grid
from .packed import pack_, packed_like
from .ties import declare_ties_, sharers

Batch = Mapping[str, Any]


@torch.no_grad()
def output_divergences(
    model: nn.Module, batches: Iterable[Batch], roundings: Sequence[Mapping[str, Grid]], clip: Clip = "max"
) -> list[float]:
    """Return, per entry of `roundings`, how far the outputs move when the layers it names are put on its grids.

    KL(p || q), in nats, of the class, label or token probabilities without (p) and with (q) it, averaged over examples
    or real tokens, as in ZeroQ (Cai 2020, section 3.3); the squared error where the answers are numbers. Layers tied to
    those named are rounded along; all are put back. Raises DataError when there are no batches, TargetError for a model
    without logits.
    """
    batches = [{k: v.to(_device(model)) if isinstance(v, Tensor) else v for k, v in b.items()} for b in batches]
    if not batches:
        raise DataError("there are no calibration batches")
    reference = [_logits(model, batch) for batch in batches]
    found = []
    for rounding in track(roundings, lambda r: next(iter(r), "")):
        groups = [sharers(model, path) for path in rounding]
        for path, grid in rounding.items():
            pack_(model, path, grid, clip=clip)
        total = sum(_divergence(model, b, p) for b, p in zip(batches, reference, strict=True))
        found.append(total / len(batches))
        _put_back_(model, groups)
    return found


def stored_bytes(module: nn.Module, grid: Grid) -> int:
    """Return the bytes that the weight of a layer takes on `grid`, scales included."""
    return sum(p.nbytes for name, p in packed_like(module, grid).named_parameters() if name != "bias")


def _put_back_(model: nn.Module, groups: Iterable[list[tuple[str, nn.Module]]]) -> None:
    for path, module in (member for group in groups for member in group):
        model.set_submodule(path, module)
    declare_ties_(model)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    logits = logits_of(named(model(**batch), batch))
    if logits is None:
        raise TargetError(f"a {type(model).__name__} gives no logits to compare: load the model with its head")
    return logits


def _divergence(model: nn.Module, batch: Batch, reference: Tensor) -> float:
    """Return how far the logits are from `reference`, a mean over what counts."""
    logits = _logits(model, batch)
    kind = answers(getattr(getattr(model, "config", None), "problem_type", None), logits.shape[-1])
    if logits.ndim < 3:
        return float(divergence(kind, logits, reference, 1.0))
    labels, mask = batch.get("labels"), batch.get("attention_mask")
    counts = labels != -100 if isinstance(labels, Tensor) and labels.shape == logits.shape[:-1] else mask
    fits = isinstance(counts, Tensor) and counts.shape == logits.shape[:-1]
    return float(divergence(kind, logits, reference, 1.0, counts.bool() if fits else None))  # type: ignore[union-attr]


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
