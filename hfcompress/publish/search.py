"""The report of a search: the sizes that came of it, and every trial, as a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.files import write_text
from ..measure.cells import State
from ..measure.result import Result
from ..measure.trials import SIZES, SearchRecord, Trial, read_search
from . import rows
from .search_figure import scale, write_trials
from .template import cell, code, render, words

REPORT, _FIGURE = "README.md", "trials.png"
_TEMPLATE = "search.md.jinja"


def write_report(folder: Path) -> Path:
    """Write README.md and its figure into a search's folder, from search.json and the sizes' results alone."""
    record, results = read_search(folder)
    figure = _FIGURE if record.done else None
    if figure:
        write_trials(record, folder / figure)
    path = folder / REPORT
    write_text(path, render_report(record, results, figure))
    return path


def render_report(record: SearchRecord, results: Mapping[str, Result], figure: str | None) -> str:
    """Return the report's text."""
    keys = list(record.space)
    ordered = sorted(record.done, key=lambda trial: trial.cost or 0.0, reverse=not record.lower_cost_is_better)
    return render(
        _TEMPLATE,
        record=record,
        figure=figure,
        push=_push(record),
        keys=keys,
        space={key: _space(values) for key, values in record.space.items()},
        sizes=[_size(record, size, results.get(size.name)) for size in record.sizes],
        missing=[size for size in record.sizes if size.state is not State.DONE],
        trials=[_trial(record, trial, keys) for trial in ordered],
        failed=[trial for trial in record.trials if trial.state is State.FAILED],
        minutes=f"{sum(trial.seconds for trial in record.trials) / 60:.0f}",
        original=None if record.original is None else _metric(record, record.original),
    )


def _push(record: SearchRecord) -> str:
    """Return the command that publishes the sizes as one collection."""
    done = [f"{SIZES}/{size.name}" for size in record.sizes if size.state is State.DONE]
    return " ".join(["hfcompress push", *done, "--collection", f'"{" ".join(record.title.split())}"'])


def _space(values: Any) -> str:
    if not isinstance(values, dict):
        return ", ".join(map(code, values))
    steps = f" in steps of {values['step']}" if "step" in values else ""
    return f"{values['low']} to {values['high']}{steps}"


def _size(record: SearchRecord, size: Any, result: Result | None) -> list[str]:
    """Return a row: what was asked, what came of it on the split that is reported, and what the trial had said."""
    asked = ", ".join(f"{name} {bound}" for name, bound in size.bounds.items())
    if result is None:
        return [f"`{size.name}`", cell(asked), *[rows.NONE] * 4]
    head = result.headline()
    found = result.compressed.quality_in(head.engine)
    low, high = (rows.signed(result, bound) for bound in (head.low, head.high))
    quality = rows.metric(result, found.value) if found else rows.NONE
    trial = next((t for t in record.trials if t.number == size.trial), None)
    times = ", ".join(f"{rows.ratio(s.ratio)} at {rows.shape_name(s)}" for s in result.best_speedups()) or rows.NONE
    return [
        f"[{size.name}]({SIZES}/{size.name}/model/README.md)",
        cell(asked),
        f"{rows.si(result.compressed.size_bytes, 'B')}, {rows.ratio(result.size_ratio)}",
        f"{quality}, {rows.signed(result, head.value)} ({low} to {high})",
        rows.NONE if trial is None or trial.value is None else _metric(record, trial.value),
        times,
    ]


def _trial(record: SearchRecord, trial: Trial, keys: list[str]) -> list[str]:
    value, cost = (rows.NONE if x is None else x for x in (trial.value, trial.cost))
    quality = value if isinstance(value, str) else _metric(record, value)
    made = [size.name for size in record.sizes if size.trial == trial.number]
    return [
        str(trial.number + 1),
        *(cell(words(trial.params[key])) for key in keys),
        cost if isinstance(cost, str) else f"{cost:.2f}",
        quality,
        ", ".join(made) or rows.NONE,
    ]


def _metric(record: SearchRecord, value: float) -> str:
    return f"{value * scale(record):.2f}"
