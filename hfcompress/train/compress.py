"""One-shot compression of a model in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..checkpoint import attach_structure_
from ..core.disk import disk_is_full
from ..core.errors import DataError, LifecycleError, ModelError, shown
from ..core.lifecycle import Lifecycle
from ..core.method import Corpus
from ..core.progress import OnProgress, listening, silent, track
from ..core.user_adapters import refuse_adapters
from ..modules.coverage import weights_of
from ..recipe.schema import Recipe
from .corpus import corpus_of_batches
from .covering import coverage, with_coverage
from .forward_check import ForwardCheck
from .stages import RecipeLike, StageMethods, read_recipe, stages_of
from .undo import undone_on_error


def compress(
    model: nn.Module,
    recipe: RecipeLike,
    *,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
    processor: Any = None,
    texts: Iterable[str] | None = None,
    seed: int | None = None,
    on_progress: OnProgress = silent,
) -> nn.Module:
    """Apply the one-shot methods of `recipe` to `model`, in place, and return it, ready for `save_pretrained`.

    calibration: batches of model inputs, read by the methods that need data. processor: the model's tokenizer or image
    processor; a method that changes what the model reads changes it in place too, so save both. texts: the corpus as
    written, for methods that read text. seed: by default that of a Recipe, else 0. A Recipe's or recipe file's `dtype`
    is for loading: here the model keeps its own. `on_progress` is called with what is being done and the share done.
    Raises LifecycleError for a method that trains or lacks what it needs, TargetError for a model with adapters of peft
    before anything is read, and ModelError where the model, run once before and once after each stage, does not run any
    more or answers in another form. After an error the model is what it was before, unless it is larger than a
    gigabyte: then, and when interrupted, it is left without training wrappers, and layers that were done stay
    compressed.
    """
    _require_model(model)
    refuse_adapters(model)
    calibration = None if calibration is None else _batches(calibration)
    corpus = corpus_of_batches(calibration or (), list(texts or ()))
    recipe = read_recipe(recipe)
    if seed is None:
        seed = recipe.seed if isinstance(recipe, Recipe) else 0
    stages = stages_of(recipe)
    for stage in stages:
        if stage.train is not None:
            raise LifecycleError(f"stage {stage.title!r} trains: use HFCompressTrainer, or `hfcompress run`")
    changed = processor if any(method.needs.processor for stage in stages for method in stage.methods) else None
    with undone_on_error(model, changed):
        for stage in stages:
            _run_stage(model, stage, calibration, seed, processor, corpus, on_progress)
    return model


def _require_model(model: Any) -> None:
    """Raise LifecycleError for what is no model, and for one without values."""
    if not isinstance(model, nn.Module):
        raise LifecycleError(f"compress takes a model, such as AutoModel.from_pretrained gives (got {shown(model)})")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise LifecycleError("the model is on the meta device, without values: load its weights first")


def _batches(calibration: Any) -> list[Any]:
    """Return batches of model inputs as a list; DataError for anything else."""
    batches = list(calibration) if isinstance(calibration, Iterable) and not isinstance(calibration, Mapping) else None
    if batches is None or not all(isinstance(batch, Mapping) for batch in batches):
        raise DataError(
            "calibration: give a list of batches, each a mapping of the model's inputs by name, such as "
            "[{'input_ids': …, 'attention_mask': …}]"
        )
    return batches


def run_oneshot(
    model: nn.Module,
    stage: StageMethods,
    *,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
    seed: int = 0,
    processor: Any = None,
    corpus: Corpus | None = None,
    on_progress: OnProgress = silent,
) -> dict[str, dict[str, float]]:
    """Run one stage without training and return what its methods report.

    Raises LifecycleError where that takes data, and ModelError where the model does not run afterwards.
    """
    changed = processor if any(method.needs.processor for method in stage.methods) else None
    with undone_on_error(model, changed):
        return _run_stage(model, stage, calibration, seed, processor, corpus, on_progress)


def _run_stage(
    model: nn.Module,
    stage: StageMethods,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None,
    seed: int,
    processor: Any,
    corpus: Corpus | None,
    on_progress: OnProgress,
) -> dict[str, dict[str, float]]:
    lifecycle = Lifecycle(stage.methods, training=False)
    if lifecycle.needs_calibration and calibration is None:
        raise LifecycleError(f"stage {stage.title!r} reads data: pass calibration=<batches of model inputs>")
    batches = _on_device(model, calibration or ()) if lifecycle.needs_calibration else []
    check = ForwardCheck(model, stage.methods, next(iter(batches or calibration or ()), None))
    report: dict[str, dict[str, float]] = {}
    training = model.training
    model.eval()
    try:
        with listening(on_progress):
            for part in track(lifecycle.passes(), lambda _: stage.title):
                weights = weights_of(model)
                targets = part.prepare(model, seed=seed, processor=processor, corpus=corpus)
                covered = coverage(model, part.methods, weights, targets)
                report |= with_coverage(_apply(part, model, stage.title, batches), covered)
    except RuntimeError as error:  # what torch raises where a changed model, or one that is odd, does not run
        if disk_is_full(error):
            raise
        raise ModelError(
            f"{stage.title}: this {type(model).__name__} does not run while it is compressed ({_brief(error)}). It may "
            "read a layer's weight itself: add that layer to `ignore`"
        ) from error
    finally:
        model.train(training)
    attach_structure_(model)
    check.verify(model, stage.title)
    return report


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _on_device(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    device = next(model.parameters()).device
    return [{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()} for batch in batches]


def _apply(
    lifecycle: Lifecycle, model: nn.Module, title: str, batches: Sequence[Mapping[str, torch.Tensor]]
) -> dict[str, dict[str, float]]:
    if not lifecycle.needs_calibration:
        return lifecycle.finalize(model)
    report: dict[str, dict[str, float]] = {}
    for phase in track(["observe", "finalize"], lambda _: title):
        if phase == "observe":
            lifecycle.observe(model, lambda: batches)
        else:
            report = lifecycle.finalize(model)
    return report
