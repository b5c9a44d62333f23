"""A search's figure: every trial by what it costs and how good it is, those that became a size by name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..core.metric import scale_of
from ..measure.cells import State
from ..measure.trials import SearchRecord, Trial
from .canvas import BEFORE, BEST, INK, drawing, save
from .labels import Label, write_labels
from .pareto import Point, frontier

_DOT = 8  # points


def write_trials(record: SearchRecord, path: Path) -> None:
    """Write the figure as PNG, atomically."""
    save(draw_trials(record), path)


def scale(record: SearchRecord) -> float:
    """Return 100 for a metric that is a share, shown in per cent, otherwise 1."""
    return scale_of((trial.value or 0.0 for trial in record.done), higher=record.higher_is_better)


def draw_trials(record: SearchRecord) -> Figure:
    """Return the figure; failed trials are left out."""

    def fill(figure: Figure) -> None:
        axis = figure.subplots()
        named = _draw(axis, record)
        axis.set_xlabel(record.cost.replace("_", " "))
        axis.set_ylabel(f"{record.metric}, held-out part")
        axis.margins(0.1)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8.5)
        figure.draw_without_rendering()
        _name(axis, record, named)

    return drawing(fill, 4.6)


def _draw(axis: Axes, record: SearchRecord) -> dict[str, Point]:
    """Draw the trials, the best at each cost, and the original; return the points that have a name."""
    points = [(trial, _point(record, trial)) for trial in record.done]
    made = [size for size in record.sizes if size.state is State.DONE]
    chosen = {size.trial for size in made}
    sign = 1 if record.lower_cost_is_better else -1
    flipped = [Point(p.name, sign * p.cost, p.value) for _, p in points]
    best = [Point(p.name, sign * p.cost, p.value) for p in frontier(flipped, higher_is_better=record.higher_is_better)]
    where: Literal["post", "pre"] = "post" if sign > 0 else "pre"
    axis.step(
        [p.cost for p in best], [p.value for p in best], where=where, color=INK, lw=1, ls="--", label="best at each"
    )
    for others, colour, size, label in ((True, BEFORE, 5, "trial"), (False, BEST, _DOT, "became a size")):
        drawn = [p for trial, p in points if (trial.number not in chosen) == others]
        axis.plot(
            [p.cost for p in drawn],
            [p.value for p in drawn],
            "o",
            color=colour,
            ms=size,
            label=label if drawn else None,
        )
    if record.original is not None:
        axis.axhline(scale(record) * record.original, color=INK, lw=0.8, ls=":", label="the original")
    at = {trial.number: p for trial, p in points}
    return {size.name: at[size.trial] for size in made if size.trial is not None}


def _point(record: SearchRecord, trial: Trial) -> Point:
    return Point(str(trial.number), trial.cost or 0.0, scale(record) * (trial.value or 0.0))


def _name(axis: Axes, record: SearchRecord, named: dict[str, Point]) -> None:
    """Write the names of the sizes, where two were made of one trial both, clear of all trials."""
    places: dict[tuple[float, float], list[str]] = {}
    for name, point in named.items():
        places.setdefault((point.cost, point.value), []).append(name)
    labels = [Label(", ".join(names), *place, BEST) for place, names in places.items()]
    others = [(p.cost, p.value) for p in (_point(record, trial) for trial in record.done)]
    write_labels(axis, labels, size=10.5, radius=_DOT / 2, nameless=[p for p in others if p not in places])
