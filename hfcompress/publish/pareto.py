"""The card's figure of this run among others of the same model and data: bytes and time against the metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ..measure.result import Result
from . import rows
from .best import best_on, value_in
from .canvas import BEFORE, BEST, INK, drawing, save
from .comparison import alike, machine_of
from .labels import Label, write_labels

PARETO = "pareto.png"
_OURS, _ORIGINAL = "this run", "original"
_LEGEND = ["orange: this run", "ring: the original", "dashed: best at each cost", ""]


@dataclass(frozen=True)
class Point:
    """A run: what it costs (bytes or milliseconds) and how good it is, in the metric's own direction."""

    name: str
    cost: float
    value: float


def comparable(result: Result, others: Mapping[str, Result]) -> dict[str, Result]:
    """Return those of `others` with the same original, examples and metric, this run itself left out."""
    return {name: other for name, other in others.items() if alike(other, result) and other != result}


def frontier(points: Sequence[Point], *, higher_is_better: bool = True) -> list[Point]:
    """Return the points that no other beats in both: cheapest first, each better than the one before."""
    sign = 1 if higher_is_better else -1
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -sign * p.value)):
        if not best or sign * point.value > sign * best[-1].value:
            best.append(point)
    return best


def steps(points: Sequence[Point], result: Result) -> list[tuple[float, float]]:
    """Return the corners of the line that joins the best at each cost; `result` says which way its metric runs."""
    front = frontier(points, higher_is_better=result.headline().higher_is_better)
    corners = [(front[0].cost, front[0].value)]
    for last, point in pairwise(front):
        corners += [(point.cost, last.value), (point.cost, point.value)]
    return corners


def write_pareto(result: Result, others: Mapping[str, Result], path: Path) -> None:
    """Write the figure as PNG, atomically."""
    save(draw_pareto(result, others), path)


def draw_pareto(result: Result, others: Mapping[str, Result]) -> Figure:
    """Return the figure: a panel for bytes, one for the time at this run's first shape, and the names by number.

    Only runs of the same original, examples and metric are drawn.
    """
    runs = {_OURS: result} | comparable(result, others)
    numbers = {name: str(place) for place, name in enumerate(runs)}
    panels = [("Weight files (MB)", _sizes(runs))]
    timed = _times(result, runs)
    if len(timed) > 1:
        shape = rows.where(result.best_speedups()[0])
        panels.append((f"ms {shape}, best engine on\nthis processor, and the metric there", timed))

    def fill(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels) + 1, width_ratios=[1.0] * len(panels) + [0.55], squeeze=False)[0]
        for axis, (title, points) in zip(axes, panels, strict=False):
            _scatter(axis, title, points, result)
        axes[0].set_ylabel(rows.metric_name(result))
        axes[-1].set_axis_off()
        names = [f"{number}  {name}" for name, number in list(numbers.items())[1:]]
        axes[-1].text(0.0, 1.0, "\n".join([*_LEGEND, *names]), va="top", fontsize=8.5)
        figure.draw_without_rendering()  # numbers are placed where the axes finally lie
        for axis, (_, points) in zip(axes, panels, strict=False):
            _name(axis, points, numbers, result)

    return drawing(fill, max(4.2, 0.2 * len(runs) + 1.4), width=5.6 * len(panels) + 2.2)


def _scatter(axis: Axes, title: str, points: Sequence[Point], result: Result) -> None:
    x, y = zip(*steps(points, result), strict=True)
    axis.plot(x, y, color=INK, linewidth=1, linestyle="--")
    for point in points:
        ours = point.name == _OURS
        open_ = point.name == _ORIGINAL
        axis.plot(
            [point.cost],
            [point.value],
            "o",
            markersize=9 if ours else 6,
            color=BEST if ours else BEFORE,
            fillstyle="none" if open_ else "full",
            zorder=3 if ours else 2,
        )
    log_axis(axis, title)
    axis.margins(0.12)


def _name(axis: Axes, points: Sequence[Point], numbers: Mapping[str, str], result: Result) -> None:
    """Write each point's number beside it; this run and the original are told by their looks."""
    plain = {_OURS: " ", _ORIGINAL: " "}
    labels = [Label(plain.get(p.name) or numbers[p.name], p.cost, p.value, INK) for p in points]
    write_labels(axis, labels, steps(points, result), size=8, radius=3.5)


def log_axis(axis: Axes, title: str) -> None:
    """Make the x axis logarithmic, with round numbers that are written out."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    axis.set_xlabel(title)


def _sizes(runs: Mapping[str, Result]) -> list[Point]:
    first = next(iter(runs.values()))
    found = [Point(name, r.compressed.size_bytes / 1e6, _value(r)) for name, r in runs.items()]
    return [*found, Point(_ORIGINAL, first.baseline.size_bytes / 1e6, _value(first, original=True))]


def _times(result: Result, runs: Mapping[str, Result]) -> list[Point]:
    """Return each run's time in its best engine at the first shape of `result`.

    Runs not timed there are left out, and those timed on another processor: its milliseconds are others.
    """
    wanted = next(iter(result.best_speedups()), None)
    if wanted is None:
        return []
    found = []
    for name, run in runs.items():
        best = best_on(run, wanted) if machine_of(run) == machine_of(result) else None
        row = rows.find_latency(run.compressed, best.engine, best) if best else None
        if best is not None and row is not None:
            value = rows.metric_scale(result) * value_in(run, best.engine)
            found.append(Point(name, row.time_ms, value))  # the metric of the engine that takes this time
    return found


def _value(result: Result, *, original: bool = False) -> float:
    head = result.headline()
    quality = (result.baseline if original else result.compressed).quality_in(head.engine)
    return rows.metric_scale(result) * (quality.value if quality else float("nan"))
