"""A model that is no better than a guess is not worth compressing, and a sign that its labels are not the data's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.metric import Metric, is_better, written
from ..measure.quality import outputs, quality
from ..measure.result import Quality
from ..train.tasks import Task
from .folder import RunFolder
from .measuring import BASELINE, bench_settings, sources, write_evaluation
from .reporter import Reporter
from .setup import Setup

_GUESS = {"examples": "always the same class", "tokens": "a guess that takes all tokens for equally likely"}


def require_above_trivial(setup: Setup, folder: RunFolder, reporter: Reporter, *, batches: Path, kept: Path) -> None:
    """Measure the baseline before anything is done to it; DataError where it is no better than a guess.

    `batches` is the file to write what it reads to. What it answers is kept in the folder `kept`, so that it is not
    asked again when all is measured.
    """
    if setup.recipe.evaluate.allow_trivial:
        return
    settings = bench_settings(setup)
    data = replace(write_evaluation(setup, batches), kept=kept)
    source = sources(setup, setup, folder)[BASELINE]
    with reporter.bar("evaluating the baseline") as progress:
        answers = outputs(source, "pytorch", BASELINE, data, settings.auto_class, settings.threads, progress)
    found = quality("pytorch", answers, data)
    bound = trivial_score(setup.task, data.score, data.labels, setup.model.config)
    if bound is not None and not is_better(found.value, bound, higher=found.higher_is_better):
        raise DataError(_message(setup, found, bound))
    value, guess = _written(found, bound)
    reporter.say(f"Baseline: {found.metric} {value}" + (f", a guess {guess}" if bound is not None else ""))


def trivial_score(task: Task, metric: Metric, labels: np.ndarray, config: Any) -> float | None:
    """Return what the best guess that looks at no example gets on these labels; None where the metric has no number."""
    try:
        return metric.trivial(task.guesses(labels, config), labels)
    except (ValueError, TypeError, ArithmeticError):  # a script's metric that is not for such predictions
        return None


def _written(found: Quality, bound: float | None) -> tuple[str, str]:
    """Return the metric and what a guess gets, as the card writes them."""
    guess = found.value if bound is None else bound
    higher = found.higher_is_better
    return written(found.value, guess, higher=higher), written(guess, found.value, higher=higher)


def _message(setup: Setup, found: Quality, bound: float) -> str:
    mapped = setup.splits.label_map
    (value, guessed), guess = _written(found, bound), _GUESS.get(setup.task.counted, "a guess")
    labels = "" if mapped is None else f" Labels of the data, and the model's class (its number): {mapped}."
    if found.metric == "accuracy" and len(setup.task.classes(setup.model.config)) == 2 and 1 - found.value > bound:
        labels += f" With the two labels exchanged it would be {written(1 - found.value, higher=True)}."
    mend = "say under data.labels which label is which class if these are wrong, " if mapped is not None else ""
    return (
        f"evaluate: before any compression the model gets {found.metric} {value} on the {found.examples} "
        f"examples of {setup.splits.evaluate_split!r}, no better than {guess} ({guessed}).{labels} Name a model "
        f"that was trained for this data, {mend}or add `finetune:`; to go on all the same, set "
        "evaluate.allow_trivial: true."
    )
