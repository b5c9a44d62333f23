"""One-shot compression of a model in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..checkpoint import attach_structure_
from ..core.errors import LifecycleError
from ..core.lifecycle import Lifecycle
from .stages import RecipeLike, StageMethods, stages_of

CALIBRATION_EXAMPLES = 256


def compress(
    model: nn.Module,
    recipe: RecipeLike,
    *,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Apply the one-shot methods of `recipe` to `model`, in place, and return it, ready for `save_pretrained`.

    calibration: batches of model inputs, read by the methods that need data. Raises LifecycleError for a method that
    trains or when `calibration` is missing.
    """
    for stage in stages_of(recipe):
        if stage.train is not None:
            raise LifecycleError(f"stage {stage.title!r} trains: use HFCompressTrainer, or `hfcompress run`")
        run_oneshot(model, stage, calibration=calibration, seed=seed)
    return model


def run_oneshot(
    model: nn.Module,
    stage: StageMethods,
    *,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
    seed: int = 0,
) -> tuple[Lifecycle, dict[str, dict[str, float]]]:
    """Run one stage without training and return its life cycle and what its methods report."""
    lifecycle = Lifecycle(stage.methods, training=False)
    training = model.training
    model.eval()
    lifecycle.prepare(model, seed=seed)
    if lifecycle.needs_calibration:
        if calibration is None:
            raise LifecycleError(f"stage {stage.title!r} reads data: pass calibration=<batches of model inputs>")
        batches: list[Any] = list(calibration)
        lifecycle.observe(model, lambda: batches)
    report = lifecycle.finalize(model)
    attach_structure_(model)
    model.train(training)
    return lifecycle, report
