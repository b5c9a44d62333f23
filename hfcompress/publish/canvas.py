"""How the card's figures look: no background, and colours that read on a white page as on a dark one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..core.files import writing

# A page's theme is the reader's switch, which a <picture> element cannot ask for: one picture has to do for both.
INK, BEFORE, AFTER, BEST = "#747c85", "#868f9b", "#3a86e0", "#d9771f"
WIDTH = 8.0  # inches
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "figure.facecolor": "none",
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.08,
    "savefig.facecolor": "none",
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $x: names are what they are
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Bar:
    """A horizontal bar at height `place`, the text at its right; `outline` draws how long it was before."""

    place: float
    length: float
    text: str
    colour: str
    outline: float | None = None
    height: float = 0.7


def drawing(draw: Callable[[Figure], None], height: float, width: float = WIDTH) -> Figure:
    """Return a figure of `width` by `height` inches that `draw` has filled."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, atomically and with the same bytes for the same drawing."""
    with mpl.rc_context(_STYLE), writing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def bars(axis: Axes, title: str, drawn: list[Bar], *, room: float = 1.5) -> None:
    """Draw bars from zero, with room at the right for their texts: `room` times the longest."""
    for bar in drawn:
        if bar.outline is not None:
            axis.barh(
                bar.place, bar.outline, height=bar.height, fill=False, edgecolor=BEFORE, linewidth=0.9, linestyle=":"
            )
        axis.barh(bar.place, bar.length, color=bar.colour, height=bar.height)
        reach = max(bar.length, bar.outline or 0.0)
        axis.annotate(bar.text, (reach, bar.place), (6, 0), textcoords="offset points", va="center")
    longest = max((max(bar.length, bar.outline or 0.0) for bar in drawn), default=0.0)
    axis.set_xlim(0, room * longest or 1.0)
    plain(axis, title)


def plain(axis: Axes, title: str) -> None:
    """Leave an axis its title and the names at its left, and no lines or numbers."""
    axis.set_title(title, loc="left")
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(left=False, bottom=False, labelbottom=False)


def rows_of(axis: Axes, names: list[str], places: list[float], below: float = 0.6) -> None:
    """Write `names` at the left, at these heights, the first on top."""
    axis.set_yticks(places, names)
    axis.set_ylim(max(places, default=0.0) + below, min(places, default=0.0) - below)
