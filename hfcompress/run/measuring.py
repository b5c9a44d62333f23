"""Measuring what a run made, on the recipe's own evaluation split and shapes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..export.runtime import Source, engine
from ..measure.bench import Bench, Settings, bench
from ..measure.examples import write_examples
from ..measure.quality import EvaluationSet, outputs, quality
from ..measure.result import Quality
from ..modules.pixels import pixels_of
from ..train.tasks.base import metric_key
from .calibrating import write_calibration
from .folder import RunFolder
from .real_lengths import real_of_run
from .reporter import Reporter
from .setup import Setup
from .verify import write_labels, write_split

BASELINE, COMPRESSED = "baseline", "compressed"


def measure(
    setup: Setup, compressed: Setup, folder: RunFolder, reporter: Reporter, *, control: Path | None
) -> tuple[Bench, Quality | None]:
    """Measure baseline and compressed model, and the control's quality if there is one.

    `compressed` is the setup with the data as the compressed model reads it.
    """
    data = replace(write_evaluation(compressed, folder.batches), kept=folder.measured)
    if compressed is not setup:
        data = replace(data, own={BASELINE: write_evaluation(setup, folder.baseline_batches).batches})
    write_labels(folder, data.labels)
    own_file = folder.real if compressed is setup else folder.baseline_real
    real = real_of_run({BASELINE: setup, COMPRESSED: compressed}, {BASELINE: own_file, COMPRESSED: folder.real})
    settings = replace(bench_settings(setup), real=real)
    said: dict[str, np.ndarray] = {}
    data = replace(data, tell=lambda name, label, found: said.update({label: found}) if name == "pytorch" else None)
    models = sources(setup, compressed, folder)
    if any(engine(name).calibrated for name in settings.engines):
        for label, reads, path in (
            (BASELINE, setup, folder.baseline_calibration),
            (COMPRESSED, compressed, folder.calibration),
        ):
            write_calibration(path, reads.train, reads.collator, setup.recipe)
            models[label] = replace(models[label], calibration=str(path))
    with reporter.bar("measuring") as progress:
        measured = bench(models, settings, data, names=_names(setup, folder), on_progress=progress)
    _write_examples(compressed, folder, said, data.labels)
    if control is None:
        return measured, None
    with reporter.bar("evaluating the control") as progress:
        source = Source(str(control), dtype=setup.recipe.dtype)
        kept = outputs(source, "pytorch", BASELINE, data, settings.auto_class, settings.threads, progress)
    return measured, quality("pytorch", kept, data)


def _write_examples(setup: Setup, folder: RunFolder, said: dict[str, np.ndarray], labels: np.ndarray) -> None:
    """Keep a few examples that people can look at, where the task has such and both models ran in PyTorch."""
    if len(said) < 2 or setup.task.picture(setup.evaluate[0]) is None:
        return
    names = setup.splits.label_names

    def picture(row: int) -> Any:
        return setup.task.picture(setup.evaluate[row])

    def name(index: int) -> str:
        return names[index] if names and index < len(names) else str(index)

    write_examples(folder.examples, (said[BASELINE], said[COMPRESSED]), labels, name, picture, setup.recipe.seed)


def write_evaluation(setup: Setup, path: Path) -> EvaluationSet:
    """Store the evaluation split as batches every engine reads, and return it with its labels and metric."""
    recipe = setup.recipe
    return EvaluationSet(
        batches=path,
        labels=write_split(path, setup.evaluate, setup.collator, recipe.evaluate.batch_size),
        metric=metric_key(setup.metric),
        score=setup.task.metric(setup.metric),
        reduction=setup.task.reduction,
        decode=setup.task.predictions,
        answers=setup.task.answers,
        counted=setup.task.counted,
        classes=setup.task.classes(setup.model.config),
    )


def bench_settings(setup: Setup) -> Settings:
    """Return the recipe's benchmark with its defaults filled in; without one nothing is timed."""
    recipe, timing = setup.recipe, setup.recipe.benchmark
    threads = (timing.threads if timing else None) or os.cpu_count() or 1
    common: dict[str, Any] = {
        "auto_class": setup.task.auto_class,
        "shapes": setup.shapes,
        "threads": threads,
        "seed": recipe.seed,
    }
    if timing is None:
        return Settings(**common, engines=("pytorch",), rounds=0)
    return Settings(**common, engines=tuple(timing.engines), rounds=timing.rounds, seconds=timing.seconds)


def sources(setup: Setup, compressed: Setup, folder: RunFolder) -> dict[str, Source]:
    """Return where the two models lie: the baseline as it was given or fine-tuned, and the compressed one."""
    recipe = setup.recipe
    given = str(folder.baseline) if setup.makes_baseline else str(recipe.model)
    revision = None if setup.makes_baseline else recipe.revision
    sizes = pixels_of(setup.processor), pixels_of(compressed.processor)
    return {
        BASELINE: Source(given, str(folder.baseline_exports), revision, recipe.dtype, image_size=sizes[0]),
        COMPRESSED: Source(str(folder.model), dtype=recipe.dtype, image_size=sizes[1]),
    }


def _names(setup: Setup, folder: RunFolder) -> dict[str, str]:
    model = setup.recipe.model
    baseline = f"{model['model_type']} from scratch" if isinstance(model, dict) else base_name(model)
    if setup.recipe.finetune is not None:
        baseline += ", fine-tuned"
    return {BASELINE: baseline, COMPRESSED: folder.path.resolve().name}


def base_name(source: str) -> str:
    """Return a Hub id as it is, and of a local folder only its name."""
    return Path(source).resolve().name if Path(source).exists() else source
