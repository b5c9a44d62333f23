"""The task metric of saved models, in each engine, on stored evaluation batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core.errors import MeasureError
from ..core.metric import Metric
from ..core.scratch import scratch_folder
from ..export.runtime import Source, engine
from ..ops.reductions import unanswered
from .batches import batch_files, count_batches
from .kept import keeping, measured_key
from .process import Progress, WorkerProcess, part, quietly
from .result import ClassRow, Difference, McNemar, Quality
from .statistics import (
    Array,
    agreement,
    calibration_error,
    kl_divergence,
    mcnemar,
    paired_bootstrap,
    right_by_class,
)

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
    tell: Callable[[str, str, Array], None] = lambda engine, label, predictions: None  # hears what each model predicts
    kept: Path | None = None  # folder of what was measured before
    classes: Sequence[str] = ()  # names of the classes whose logits (N, classes) are kept; none: not a classifier

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
    """Return what `reduction` keeps of the logits (N, …) of every stored example, in a process of the engine's own.

    Raises MeasureError where the model answers an example with numbers that are not finite.
    """
    engine(engine_name)
    with scratch_folder() as folder:
        output = Path(folder) / "logits.npy"
        job = {
            "engine": engine_name,
            "models": {"model": source.to_json()},
            "inputs": {"model": str(batches_file)},
            "auto_class": auto_class,
            "threads": threads,
            "any_shape": True,
        }
        with WorkerProcess(job, f"evaluating in {engine_name}") as worker:
            count = count_batches(batches_file)
            worker.ask("predict", on_progress, output=str(output), count=count, reduction=reduction)
        kept: Array = np.load(output, allow_pickle=False)
    if count := int(unanswered(kept, reduction).sum()):
        raise MeasureError(
            f"{source.checkpoint} answers {count} of {len(kept)} examples in {engine_name} with numbers that are not "
            "finite: one of its weights is not, or its activations overflow there. It has no metric."
        )
    return kept


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
    found: dict[str, Array] = {}
    for index, (name, label) in enumerate(tasks):
        progress = part(on_progress, index, len(tasks))
        found[label] = outputs(models[label], name, label, data, auto_class, threads, progress)
        qualities[label].append(quality(name, found[label], data))
        data.tell(name, label, data.decode(found[label]))
        if label != first:
            differences[label].append(difference(name, found[first], found[label], data, resamples, seed))
    return qualities, differences


def outputs(
    source: Source, engine_name: str, label: str, data: EvaluationSet, auto_class: str, threads: int, progress: Progress
) -> Array:
    """Return what is kept of a model's logits on the evaluation set, computed once for the same files."""
    batches = data.batches_for(label)

    def compute() -> Array:
        return predict(source, engine_name, batches, auto_class, threads, progress, reduction=data.reduction)

    def key() -> str:
        return measured_key(source, engine_name, batch_files(batches), threads, data.reduction)

    return keeping(data.kept, key, compute)


def quality(engine_name: str, kept: Array, data: EvaluationSet) -> Quality:
    """Score what is kept of the logits (N, …) against the labels; MeasureError when their numbers differ."""
    if len(kept) != len(data.labels):
        raise MeasureError(f"{len(kept)} predictions for {len(data.labels)} labels: the batches are another split")
    return Quality(
        engine=engine_name,
        metric=data.metric,
        value=float(data.score(data.decode(kept), data.labels)),
        examples=len(data.labels),
        higher_is_better=data.score.higher_is_better,
        calibration_error=calibration_error(kept, data.labels) if data.classes else None,
    )


def difference(
    engine_name: str,
    kept_a: Array,
    kept_b: Array,
    data: EvaluationSet,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Compare what is kept of the logits of the baseline, a, and of the compressed model, b, on the same examples."""
    a, b = data.decode(kept_a), data.decode(kept_b)
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
        divergence=kl_divergence(kept_a, kept_b) if data.classes else None,
        mcnemar=_mcnemar(a, b, data.labels) if data.classes else None,
        classes=_class_rows(a, b, data),
    )


def _mcnemar(a: Array, b: Array, labels: Array) -> McNemar:
    lost, gained, p_value = mcnemar(a, b, labels)
    return McNemar(lost=lost, gained=gained, p_value=p_value)


def _class_rows(a: Array, b: Array, data: EvaluationSet) -> list[ClassRow]:
    """Return a row for each class that the evaluation set has examples of; none for what is not a classifier."""
    if not data.classes:
        return []
    examples, before, after = (
        right_by_class(predicted, data.labels, len(data.classes)) for predicted in (data.labels, a, b)
    )
    return [
        ClassRow(name=name, examples=int(n), before=int(x), after=int(y))
        for name, n, x, y in zip(data.classes, examples, before, after, strict=True)
        if n
    ]
