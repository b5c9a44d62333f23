"""A comparison's figure of one model: bytes and time against the metric, every method a point with its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..core.method import Category
from ..measure.result import Result
from . import rows
from .canvas import INK, drawing, save
from .labels import Label, write_labels
from .pareto import Point, log_axis, steps

# Of one lightness, so that they read on a white page as on a dark one (after Okabe and Ito 2008).
_COLOURS = dict(
    zip(Category, ("#3a86e0", "#d9771f", "#2a9d72", "#c2568f", "#8a7a00", "#2699b0", "#8b6fd6"), strict=True)
)
_ORIGINAL = "original"
_DOT = 7.0  # points across


@dataclass(frozen=True)
class Dot:
    """A method, the mean of its seeds: megabytes and the metric, and in the engine it is fastest in both time and that.

    Time is relative to the original in PyTorch.
    """

    name: str
    category: str
    megabytes: float
    value: float
    time: float | None = None
    timed_value: float | None = None


def write_dots(dots: Sequence[Dot], original: Result, path: Path) -> None:
    """Write the figure as PNG, atomically; `original` is any result of the model."""
    save(draw_dots(dots, original), path)


def draw_dots(dots: Sequence[Dot], original: Result) -> Figure:
    """Return the figure: a panel for bytes and, where times were measured, one for time."""
    scale = rows.metric_scale(original)
    before = original.baseline.quality_in(original.headline().engine)
    value = scale * before.value if before else float("nan")
    start = Point(_ORIGINAL, original.baseline.size_bytes / 1e6, value)
    panels = [("Weight files (MB)", [start, *(Point(d.name, d.megabytes, scale * d.value) for d in dots)])]
    timed = [
        Point(d.name, d.time, scale * d.timed_value) for d in dots if d.time is not None and d.timed_value is not None
    ]
    if timed:
        shape = rows.shape_name(original.best_speedups()[0]) if original.best_speedups() else "the first shape"
        title = f"Time at {shape}, best engine, and the metric in that engine\n(the original in PyTorch = 1)"
        panels.append((title, [Point(_ORIGINAL, 1.0, value), *timed]))
    colours = {d.name: _COLOURS[Category(d.category)] for d in dots} | {_ORIGINAL: INK}

    def fill(figure: Figure) -> None:
        axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axis, (title, points) in zip(axes, panels, strict=True):
            _panel(axis, title, points, colours, original)
        _legend(axes[0], {d.category for d in dots})
        figure.draw_without_rendering()  # labels are placed where the axes finally lie
        for axis, (_, points) in zip(axes, panels, strict=True):
            _name(axis, points, colours, original)

    return drawing(fill, 5.4 * len(panels) + 0.6, width=10.5)


def _panel(axis: Axes, title: str, points: Sequence[Point], colours: dict[str, str], original: Result) -> None:
    x, y = zip(*steps(points, original), strict=True)
    axis.plot(x, y, color=INK, linewidth=1, linestyle="--")
    for point in points:
        fill = "none" if point.name == _ORIGINAL else "full"
        axis.plot([point.cost], [point.value], "o", markersize=_DOT, color=colours[point.name], fillstyle=fill)
    log_axis(axis, title)
    axis.set_ylabel(rows.metric_name(original))
    axis.margins(0.14)


def _name(axis: Axes, points: Sequence[Point], colours: dict[str, str], original: Result) -> None:
    labels = [Label(p.name, p.cost, p.value, colours[p.name]) for p in points]
    write_labels(axis, labels, steps(points, original), size=8.5, radius=_DOT / 2)


def _legend(axis: Axes, categories: set[str]) -> None:
    for category, colour in _COLOURS.items():
        if category in categories:
            axis.plot([], [], "o", color=colour, label=str(category))
    axis.plot([], [], "--", color=INK, linewidth=1, label="best at each cost")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=8.5, labelcolor=INK)
