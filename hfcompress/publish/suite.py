"""The report of a comparison: a table and a figure per model, from what its cells measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.files import write_text
from ..core.method import Category
from ..measure.cells import CELLS, CellRecord, State, SuiteRecord, read_suite
from ..measure.result import Result, Speedup
from ..measure.statistics import Spread, spread
from . import rows, template
from .best import best_on, otherwise, ratios, value_in
from .comparison import minutes
from .suite_figure import Dot, write_dots

REPORT = "README.md"
_TEMPLATE = "suite.md.jinja"


@dataclass(frozen=True)
class Entry:
    """A method on a model: its cells' results, one per seed, or why there are none."""

    method: str
    category: Category
    results: list[Result]
    reasons: list[str]  # of cells that failed or were not run

    @property
    def name(self) -> str:
        """The method, and where some of its seeds are missing how many there are."""
        cells = len(self.results) + len(self.reasons)
        seeds = f", {len(self.results)} of {cells} seeds" if self.results and self.reasons else ""
        return f"`{self.method}`{seeds}"


@dataclass(frozen=True)
class Section:
    """A model: what it is, the shapes timed, and a row of cells per method."""

    name: str
    about: str
    figure: str | None
    columns: list[str]
    rows: list[list[str]]
    failed: list[str]


def write_report(folder: Path) -> Path:
    """Write README.md and its figures into a comparison's folder, from suite.json and the cells' results alone."""
    record, results = read_suite(folder)
    figures = {}
    for model, entries in _entries(record, results).items():
        dots = _dots(entries)
        if dots:
            figures[model] = f"{model}.png"
            write_dots(dots, next(_results(entries)), folder / figures[model])
    path = folder / REPORT
    write_text(path, render_report(record, results, figures))
    return path


def render_report(record: SuiteRecord, results: Mapping[str, Result], figures: Mapping[str, str]) -> str:
    """Return the report's text; `figures` are file names by model."""
    sections = [_section(model, entries, figures.get(model)) for model, entries in _entries(record, results).items()]
    done = [cell for cell in record.cells if cell.state is State.DONE]
    first = next(iter(results.values()), None)
    seeds = len({cell.seed for cell in record.cells})
    return template.render(
        _TEMPLATE,
        record=record,
        sections=sections,
        done=len(done),
        seeds=seeds,
        cells=CELLS,
        environment=first.environment if first else {},
        timed=any(result.speedup for result in results.values()),
        controls=any(result.control for result in results.values()),
    )


def _entries(record: SuiteRecord, results: Mapping[str, Result]) -> dict[str, list[Entry]]:
    """Return, by model, its methods in the order of the seven categories."""
    found: dict[str, dict[str, Entry]] = {}
    for cell in record.cells:
        entry = found.setdefault(cell.model, {}).setdefault(cell.method, Entry(cell.method, cell.category, [], []))
        if cell.name in results:
            entry.results.append(results[cell.name])
        else:
            entry.reasons.append(_why(cell))
    order = list(Category)
    return {model: sorted(by.values(), key=lambda e: order.index(e.category)) for model, by in found.items()}


def _why(one: CellRecord) -> str:
    return f"`{one.method}`, seed {one.seed}: {template.words(one.reason or one.state.value)}"


def _results(entries: Sequence[Entry]) -> Iterator[Result]:
    return (result for entry in entries for result in entry.results)


def _section(model: str, entries: Sequence[Entry], figure: str | None) -> Section:
    failed = [reason for entry in entries for reason in entry.reasons]
    first = next(_results(entries), None)
    if first is None:
        columns = ["category", "method", "weight files"]
        return Section(model, "no cell is done", None, columns, [_missing(e, columns) for e in entries], failed)
    shapes = list({rows.shape_name(s): s for r in _results(entries) for s in r.best_speedups()}.values())
    controls = any(result.control for result in _results(entries))
    columns = ["category", "method", "weight files", first.headline().metric, "to the original"]
    columns += ["control", "to the control"] * controls + [rows.shape_name(s) for s in shapes] + ["minutes"]
    table = [_row(entry, shapes, controls) if entry.results else _missing(entry, columns) for entry in entries]
    return Section(model, _about(first), figure, columns, table, failed)


def _about(first: Result) -> str:
    before = first.baseline.quality_in(first.headline().engine)
    quality = f", {first.headline().metric} {rows.metric(first, before.value)}" if before else ""
    data = template.words(f"{first.dataset.id}, {first.dataset.split}, {first.headline().examples} examples")
    return f"{template.words(first.baseline.name)} on {data}: {rows.si(first.baseline.size_bytes, 'B')}{quality}"


def _row(entry: Entry, shapes: Sequence[Speedup], controls: bool) -> list[str]:
    results = entry.results
    first = results[0]
    size = sum(r.compressed.size_bytes for r in results) / len(results)
    bytes_ = f"{rows.si(size, 'B')}, {rows.ratio(sum(r.size_ratio for r in results) / len(results))}"
    quality = _spread(first, spread([_value(r) for r in results]), sign=False)
    cells = [str(entry.category), entry.name, bytes_, quality, _difference(results)]
    if controls:
        cells += list(_control(results))
    return [*cells, *(_time(results, shape) for shape in shapes), minutes(results)]


def _missing(entry: Entry, columns: Sequence[str]) -> list[str]:
    """Return the row of a method without a result: why there is none, where its numbers would begin."""
    why = template.cell(entry.reasons[0].partition(": ")[2])
    return [str(entry.category), entry.name, f"none: {why}", *[rows.NONE] * (len(columns) - 3)]


def _value(result: Result) -> float:
    return value_in(result, result.headline().engine)


def _spread(result: Result, found: Spread, *, sign: bool) -> str:
    """Return a mean of the metric, with the deviation over seeds where there are several."""
    mean = rows.signed(result, found.mean) if sign else rows.metric(result, found.mean)
    return mean if found.deviation is None else f"{mean} ± {rows.metric(result, found.deviation)}"


def _difference(results: Sequence[Result]) -> str:
    """Return what was lost or won against the original: with one seed its interval, with several their spread."""
    heads = [r.headline() for r in results]
    if len(heads) > 1:
        return _spread(results[0], spread([h.value for h in heads]), sign=True)
    low, high = (rows.signed(results[0], bound) for bound in (heads[0].low, heads[0].high))
    return f"{rows.signed(results[0], heads[0].value)} ({low} to {high})"


def _control(results: Sequence[Result]) -> tuple[str, str]:
    pairs = [(r.control.value, _value(r)) for r in results if r.control]
    if not pairs:
        return rows.NONE, rows.NONE
    control = spread([before for before, _ in pairs])
    return (
        _spread(results[0], control, sign=False),
        _spread(results[0], spread([after - before for before, after in pairs]), sign=True),
    )


def _time(results: Sequence[Result], shape: Speedup) -> str:
    """Return how many times faster: the best engine against the original in PyTorch, and like for like.

    Then what the metric is in those engines, where it is not what the row says.
    """
    found = [(result, best) for result in results if (best := best_on(result, shape)) is not None]
    if not found:
        return rows.NONE
    timed, fastest = [result for result, _ in found], [speedup for _, speedup in found]
    return ratios(timed, fastest) + otherwise(timed, [speedup.engine for speedup in fastest])


def _dots(entries: Sequence[Entry]) -> list[Dot]:
    return [
        Dot(
            entry.method,
            str(entry.category),
            sum(r.compressed.size_bytes for r in entry.results) / len(entry.results) / 1e6,
            sum(map(_value, entry.results)) / len(entry.results),
            *_timed(entry.results),
        )
        for entry in entries
        if entry.results
    ]


def _timed(results: Sequence[Result]) -> tuple[float | None, float | None]:
    """Return the time at the first shape in the best engine, the original in PyTorch being one, and the metric there.

    The metric is that of the engine timed: no point may have the speed of one and the quality of another.
    """
    found = [(r, r.best_speedups()[0]) for r in results if r.best_speedups()]
    if not found:
        return None, None
    times, values = [1 / s.ratio for _, s in found], [value_in(r, s.engine) for r, s in found]
    return sum(times) / len(times), sum(values) / len(values)
