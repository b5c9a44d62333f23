"""The card's first figure: size, time in every engine, and the metric, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..measure.result import Difference, LatencyRow, Result
from . import rows
from .canvas import AFTER, BEFORE, BEST, INK, Bar, bars, drawing, plain, rows_of, save

FIGURE = "comparison.png"
_LINE = 0.3  # inches of height a bar takes
_STEP = 2.5  # from one pair of bars to the next, in bars


@dataclass(frozen=True)
class Pairs:
    """A panel of bars in pairs, before and after: a name for each, and the bars."""

    title: str
    names: list[tuple[float, str]]
    bars: list[Bar]

    @property
    def height(self) -> float:
        """Inches the panel takes."""
        return _LINE * (max(bar.place for bar in self.bars) + 2.6)


def write_figure(result: Result, path: Path) -> None:
    """Write the figure as PNG, atomically and with the same bytes for the same result."""
    save(draw(result), path)


def draw(result: Result) -> Figure:
    """Return the figure: bars for size and for times by shape, and the metric's differences with their intervals."""
    panels = [_size(result), *_latencies(result)]
    differences = _LINE * (1.25 * len(result.difference) + 1.6)
    heights = [*(panel.height for panel in panels), differences]

    def fill(figure: Figure) -> None:
        axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, panel in zip(axes, panels, strict=False):
            bars(axis, panel.title, panel.bars)
            rows_of(axis, [name for _, name in panel.names], [place for place, _ in panel.names])
            axis.set_ylim(max(bar.place for bar in panel.bars) + 0.6, -0.6)
        _metric(axes[-1], result)

    return drawing(fill, sum(heights) + 0.2)


def _size(result: Result) -> Pairs:
    before, after = result.baseline.size_bytes, result.compressed.size_bytes
    text = f"{rows.si(after, 'B')} ({rows.change(before, after)})"
    drawn = [Bar(0, before, rows.si(before, "B"), BEFORE), Bar(1, after, text, AFTER)]
    return Pairs("Weight files on disk", [(0, "original"), (1, "compressed")], drawn)


def _latencies(result: Result) -> list[Pairs]:
    """Return one panel per shape that the compressed model was timed at."""
    shapes = {rows.shape_name(row): row for row in result.compressed.latency}
    return [_latency(result, name, row) for name, row in shapes.items()]


def _latency(result: Result, shape: str, workload: LatencyRow) -> Pairs:
    found = [row for row in result.compressed.latency if rows.same_shape(row, workload)]
    kind = "median" if workload.examples is None else "mean"
    fastest = min(found, key=lambda row: row.time_ms)
    names, drawn = [], []
    for index, after in enumerate(found):
        place, before = index * _STEP, rows.find_latency(result.baseline, after.engine, after)
        text = rows.milliseconds(after.time_ms)
        if before is not None:
            drawn.append(Bar(place, before.time_ms, rows.milliseconds(before.time_ms), BEFORE))
            text += f" ({rows.change(before.time_ms, after.time_ms, 'faster', 'slower')})"
        drawn.append(Bar(place + 1, after.time_ms, text, BEST if after is fastest else AFTER))
        names.append((place + 0.5, rows.engine_name(after.engine)))
    return Pairs(f"Latency ({kind}), {shape}; orange: the fastest", names, drawn)


def _metric(axis: Axes, result: Result) -> None:
    """Draw, per engine, the paired difference with its interval, around a line for the original."""
    head, scale = result.headline(), rows.metric_scale(result)
    for place, row in enumerate(result.difference):
        low, value, high = (scale * x for x in (row.low, row.value, row.high))
        axis.plot([low, high], [place, place], color=AFTER, linewidth=2.5, solid_capstyle="butt")
        axis.plot([value], [place], "o", color=AFTER, markersize=8)
        axis.annotate(_words(result, row), (max(high, 0), place), (9, 0), textcoords="offset points", va="center")
    places = [float(place) for place in range(len(result.difference))]
    rows_of(axis, [rows.engine_name(row.engine) for row in result.difference], places)
    axis.axvline(0, color=INK, linewidth=1.2, linestyle="--")
    left = min(0.0, *(scale * row.low for row in result.difference))
    right = max(0.0, *(scale * row.high for row in result.difference))
    span = right - left or 1.0
    axis.set_xlim(left - 0.05 * span, right + 1.1 * span)
    how = "points" if scale == 100 else "" if head.higher_is_better else "lower is better"
    name = f"{head.metric} ({how})" if how else head.metric
    plain(axis, f"Change of {name}, {head.level:.0%} interval; dashed: original")


def _words(result: Result, row: Difference) -> str:
    after = result.compressed.quality_in(row.engine)
    value = rows.metric(result, after.value) if after else rows.NONE
    return f"{value} ({rows.signed(result, row.value)})"
