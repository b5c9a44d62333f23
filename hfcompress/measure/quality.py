"""The task metric of saved models, in each engine, on stored evaluation batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ..core.errors import MeasureError
from ..core.metric import Metric
from ..export.runtime import Source, engine
from .process import Progress, WorkerProcess, part, quietly
from .result import Difference, Quality
from .statistics import Array, agreement, paired_bootstrap

RESAMPLES = 2000


def argmax(logits: Array) -> Array:
    """Return the predicted class (N,) of logits (N, C)."""
    return logits.argmax(axis=-1)


def itself(predictions: Array) -> Array:
    """Return predictions that are answers already."""
    return predictions


@dataclass(frozen=True)
class EvaluationSet:
    """Stored batches, their labels (N, …), and how what a model puts out becomes predictions and a score.

    `own` holds, by label, the same examples for a model that reads them otherwise, through a tokenizer of its own.
    """

    batches: Path
    labels: Array
    metric: str
    score: Metric
    reduction: str = "logits"  # what the engine's process keeps of each batch's logits: a key of REDUCTIONS
    decode: Callable[[Array], Array] = argmax  # of what was kept: the predictions (N, …) that are scored
    answers: Callable[[Array], Array] = itself  # of the predictions: what two models may agree on
    counted: str = "examples"  # what the answers are one for each of
    own: Mapping[str, Path] = field(default_factory=dict)
    keep: Callable[[str, str, Array], None] = lambda engine, label, predictions: None  # is told what each model said

    def batches_for(self, label: str) -> Path:
        """Return the batches that the model called `label` reads."""
        return self.own.get(label, self.batches)


def predict(
    source: Source,
    engine_name: str,
    batches_file: str | Path,
    auto_class: str,
    threads: int,
    on_progress: Progress = quietly,
    *,
    reduction: str = "logits",
) -> Array:
    """Return what `reduction` keeps of the logits (N, …) of every stored example, in a process of the engine's own."""
    engine(engine_name)
    with tempfile.TemporaryDirectory(prefix="hfcompress-") as folder:
        output = Path(folder) / "logits.npy"
        job = {
            "engine": engine_name,
            "models": {"model": source.to_json()},
            "inputs": str(batches_file),
            "auto_class": auto_class,
            "threads": threads,
        }
        with WorkerProcess(job, f"evaluating in {engine_name}") as worker:
            count = _count(batches_file)
            worker.ask("predict", on_progress, output=str(output), count=count, reduction=reduction)
        return np.load(output, allow_pickle=False)


def evaluate(
    models: Mapping[str, Source],
    engines: Sequence[str],
    data: EvaluationSet,
    *,
    auto_class: str,
    threads: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
    on_progress: Progress = quietly,
) -> tuple[dict[str, list[Quality]], dict[str, list[Difference]]]:
    """Return each model's metric per engine, and the paired differences of all but the first against the first."""
    first, *others = models
    qualities: dict[str, list[Quality]] = {label: [] for label in models}
    differences: dict[str, list[Difference]] = {label: [] for label in others}
    tasks = [(name, label) for name in engines for label in models]
    predictions: dict[tuple[str, str], Array] = {}
    for index, (name, label) in enumerate(tasks):
        progress = part(on_progress, index, len(tasks))
        batches = data.batches_for(label)
        kept = predict(models[label], name, batches, auto_class, threads, progress, reduction=data.reduction)
        predicted = data.decode(kept)
        qualities[label].append(quality(name, predicted, data))
        predictions[name, label] = predicted
        data.keep(name, label, predicted)
        if label != first:
            row = difference(name, predictions[name, first], predicted, data, resamples, seed)
            differences[label].append(row)
    return qualities, differences


def quality(engine_name: str, predictions: Array, data: EvaluationSet) -> Quality:
    """Score predictions (N, …) against the labels; MeasureError when their numbers differ."""
    if len(predictions) != len(data.labels):
        raise MeasureError(
            f"{len(predictions)} predictions for {len(data.labels)} labels: the batches are another split"
        )
    return Quality(
        engine=engine_name,
        metric=data.metric,
        value=float(data.score(predictions, data.labels)),
        examples=len(data.labels),
        higher_is_better=data.score.higher_is_better,
    )


def difference(
    engine_name: str,
    a: Array,
    b: Array,
    data: EvaluationSet,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Compare the predictions of the baseline, a, and of the compressed model, b, on the same examples."""
    value, low, high = paired_bootstrap(data.score, a, b, data.labels, resamples, seed, level)
    return Difference(
        engine=engine_name,
        metric=data.metric,
        value=value,
        low=low,
        high=high,
        level=level,
        resamples=resamples,
        examples=len(data.labels),
        agreement=agreement(data.answers(a), data.answers(b)),
        counted=data.counted,
        higher_is_better=data.score.higher_is_better,
    )


def _count(batches_file: str | Path) -> int:
    try:
        with safe_open(str(batches_file), framework="numpy") as file:
            return len({key.partition(".")[0] for key in file.keys()})  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise MeasureError(f"{batches_file} does not hold evaluation batches: {error}") from error
