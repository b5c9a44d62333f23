"""Nothing is published before the saved folder was loaded again and gave its own numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from safetensors.numpy import load_file, save_file

from ..core.errors import CheckpointError, MeasureError, PublishError
from ..core.files import writing
from ..core.metric import written
from ..export.runtime import Source
from ..measure.batches import write_batches
from ..measure.quality import predict
from ..measure.result import Quality, Result, read_result
from ..publish.verify import run_snippet
from ..train.data import loader
from ..train.tasks import get_task
from ..train.tasks.base import Collator, stored
from .folder import RunFolder
from .undamaged import require_undamaged

TOLERANCE = 1e-9  # of the metric: same machine, same code, same file


def write_labels(folder: RunFolder, labels: np.ndarray) -> None:
    """Store the evaluation labels beside the batches."""
    with writing(folder.labels) as path:
        save_file({"labels": labels}, path)


def read_labels(folder: RunFolder) -> np.ndarray:
    """Return the evaluation labels that lie beside the batches."""
    labels: np.ndarray = load_file(folder.labels)["labels"]
    return labels


def write_split(path: Path, examples: Dataset, collate: Collator, batch_size: int) -> np.ndarray:
    """Store an encoded evaluation split as batches every engine reads, one by one, and return its labels."""
    labels: list[np.ndarray] = []

    def batches() -> Iterator[Mapping[str, Any]]:
        for batch in loader(examples, batch_size, stored(collate)):
            labels.append(np.asarray(batch["labels"]))
            yield batch

    write_batches(path, batches())
    return np.concatenate(labels)


def verify_run(folder: RunFolder) -> Result:
    """Reload the model of a run, run the card's snippet and evaluate again; PublishError when the numbers differ.

    Before that its files are compared with their digests, for a metric need not show a bit that changed.
    """
    result = read_result(folder.path)
    try:
        require_undamaged(folder.model, result)
    except CheckpointError as error:
        raise PublishError(f"nothing was pushed: {error}") from error
    run_snippet(result, folder.model)
    wanted = result.compressed.quality_in("pytorch")
    if wanted is None or not folder.labels.exists():
        raise PublishError(f"{folder.path} has no evaluation to reproduce; run the recipe again")
    try:
        value = evaluate_again(folder, result, folder.model, wanted)
    except MeasureError as error:
        raise PublishError(f"the saved model cannot be evaluated, nothing was pushed: {error}") from error
    if abs(value - wanted.value) > TOLERANCE:
        raise PublishError(
            f"the saved model gives {wanted.metric} {_written(value, wanted)}, its result says "
            f"{_written(wanted.value, wanted)}: nothing was pushed. Run `hfcompress run … --resume` to measure what "
            "lies in the folder now."
        )
    return result


def _written(value: float, wanted: Quality) -> str:
    return written(value, wanted.value, higher=wanted.higher_is_better)


def evaluate_again(folder: RunFolder, result: Result, model: Path, wanted: Quality) -> float:
    """Return the metric of `wanted`, in its engine, of the model now in `model`, on the examples of the run."""
    threads, task = int(result.environment.get("threads", 1)), get_task(result.task)
    source = Source(str(model), dtype=result.dtype)
    kept = predict(source, wanted.engine, folder.batches, result.auto_class, threads, reduction=task.reduction)
    return float(task.metric(wanted.metric)(task.predictions(kept), read_labels(folder)))


def run_folder(path: str | Path) -> RunFolder:
    """Return the run folder at `path`, or the one its `model/` folder is in."""
    path = Path(path)
    return RunFolder(path.parent if path.name == "model" and (path.parent / "result.json").exists() else path)
