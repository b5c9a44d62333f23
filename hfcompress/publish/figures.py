"""The card's figure: size, latency and metric before and after, on a light panel that reads in light and dark mode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..core.files import writing
from ..measure.result import LatencyRow, Result
from . import rows

FIGURE = "comparison.png"
BEFORE, AFTER, BEST, INK = "#8c96a3", "#2f6fb0", "#e08a1e", "#222222"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.bottom": False,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.08,
    "savefig.facecolor": "white",
    "text.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Bar:
    """A horizontal bar: the name at its left, the text at its right, and an interval drawn over its end."""

    name: str
    length: float
    text: str
    colour: str
    interval: tuple[float, float] | None = None

    @property
    def reach(self) -> float:
        """Where the drawing ends and the text may begin."""
        return max(0.0, self.length, *(self.interval or ()))


@dataclass(frozen=True)
class Panel:
    """One group of bars on a scale of its own."""

    title: str
    bars: list[Bar]


def write_figure(result: Result, path: Path) -> None:
    """Write the figure as PNG, atomically and with the same bytes for the same result."""
    with mpl.rc_context(STYLE), writing(path) as temporary:
        draw(result).savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def draw(result: Result) -> Figure:
    """Return the figure: panels for size, latency per shape, and the metric with the interval of its difference."""
    panels = [_size_panel(result), *_latency_panels(result), _metric_panel(result)]
    heights = [len(panel.bars) + 1.6 for panel in panels]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 0.33 * sum(heights) + 0.3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, panel in zip(axes, panels, strict=True):
            _draw(axis, panel)
    return figure


def _size_panel(result: Result) -> Panel:
    before, after = result.baseline.size_bytes, result.compressed.size_bytes
    text = f"{rows.si(after, 'B')} ({rows.change(before, after)})"
    return Panel(
        "Weight files on disk",
        [Bar("original", before, rows.si(before, "B"), BEFORE), Bar("compressed", after, text, AFTER)],
    )


def _latency_panels(result: Result) -> list[Panel]:
    """Return one panel per shape the original was timed at in PyTorch."""
    slow = [row for row in result.baseline.latency if row.engine == "pytorch"]
    return [Panel(f"Latency (median), {rows.shape_name(row)}", _latency_bars(result, row)) for row in slow]


def _latency_bars(result: Result, before: LatencyRow) -> list[Bar]:
    """Return the original, the compressed model in the same engine, and in its best engine where that is another."""
    bars = [Bar("original, PyTorch", before.p50_ms, rows.milliseconds(before.p50_ms), BEFORE)]
    best = [s.engine for s in result.best_speedups() if rows.same_shape(s, before)]
    for engine in dict.fromkeys(["pytorch", *best]):
        after = rows.find_latency(result.compressed, engine, before)
        if after is not None:
            faster = rows.change(before.p50_ms, after.p50_ms, "faster", "slower")
            text = f"{rows.milliseconds(after.p50_ms)} ({faster})"
            colour = AFTER if engine == "pytorch" else BEST
            bars.append(Bar(f"compressed, {rows.engine_name(engine)}", after.p50_ms, text, colour))
    return bars


def _metric_panel(result: Result) -> Panel:
    head, scale = result.headline(), rows.metric_scale(result)
    before, after = (model.quality_in(head.engine) for model in (result.baseline, result.compressed))
    bars = []
    if before is not None and after is not None:
        interval = ((before.value + head.low) * scale, (before.value + head.high) * scale)
        text = f"{rows.metric(result, after.value)} ({rows.points(result, head.value)})"
        bars = [
            Bar("original", before.value * scale, rows.metric(result, before.value), BEFORE),
            Bar("compressed", after.value * scale, text, AFTER, interval),
        ]
    return Panel(f"{rows.metric_name(result)}, line: {head.level:.0%} interval of the difference", bars)


def _draw(axis: Axes, panel: Panel) -> None:
    """Draw horizontal bars from zero, the first on top, with room at the right for the texts."""
    for place, bar in enumerate(panel.bars):
        axis.barh(place, bar.length, color=bar.colour, height=0.7)
        if bar.interval is not None:
            centre = sum(bar.interval) / 2
            axis.errorbar(centre, place, xerr=centre - bar.interval[0], color=INK, capsize=4, linewidth=1.5)
        axis.annotate(bar.text, (bar.reach, place), (7, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(panel.bars)), [bar.name for bar in panel.bars])
    axis.set_xlim(min([0.0, *(bar.length for bar in panel.bars)]), 1.5 * max(bar.reach for bar in panel.bars) or 1.0)
    axis.set_ylim(len(panel.bars) - 0.4, -0.6)
    axis.set_title(panel.title, loc="left")
    axis.tick_params(left=False, bottom=False, labelbottom=False)
