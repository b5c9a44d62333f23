"""The card's grid of test images with what both models say of them; right and wrong differ in sign and in colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..core.files import writing
from ..measure.examples import Example, Examples, read_examples
from .figures import INK, STYLE

GRID = "examples.png"
COLUMNS, LONGEST = 4, 16  # letters of a label
RIGHT, WRONG = "#1b6e3c", "#b3261e"


def write_grid(run: Path, target: Path) -> str | None:
    """Draw the run's examples, if it has any, to `target`/examples.png and return what to say of them."""
    found = read_examples(run)
    if found is None:
        return None
    with mpl.rc_context(STYLE), writing(target / GRID) as temporary:
        draw(*found).savefig(temporary, format="png", dpi=120, metadata={"Software": None})
    return caption(found[0])


def caption(found: Examples) -> str:
    """Return in words which examples are shown."""
    chosen = sum(example.chosen for example in found.examples)
    drawn = f"{len(found.examples) - chosen} of {found.total:,} test images, drawn at random"
    if not found.disagreements:
        return f"{drawn}; the two models disagree on none."
    return f"{drawn}, and, framed, {chosen} of the {found.disagreements:,} on which the two models disagree."


def draw(found: Examples, tiles: list[Image.Image]) -> Figure:
    """Return the grid."""
    lines = -(-len(tiles) // COLUMNS)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 2.35 * lines), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(lines, COLUMNS, squeeze=False).flatten()
        for axis in axes:
            axis.set_axis_off()
        for axis, example, tile in zip(axes, found.examples, tiles, strict=False):
            _draw(axis, example, tile)
    return figure


def _draw(axis: Axes, example: Example, tile: Image.Image) -> None:
    axis.imshow(np.asarray(tile), interpolation="nearest")
    axis.set_title(_short(example.label), fontsize=10)
    for line, (who, said) in enumerate((("original", example.baseline), ("compressed", example.compressed))):
        right = said == example.label
        text = f"{who} {'✓' if right else '✗'} {_short(said)}"
        place: dict[str, Any] = {
            "xycoords": "axes fraction",
            "textcoords": "offset points",
            "ha": "center",
            "va": "top",
        }
        axis.annotate(text, (0.5, 0), (0, -4 - 13 * line), color=RIGHT if right else WRONG, fontsize=9, **place)
    if example.chosen:
        axis.set_axis_on()
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set(visible=True, color=INK, linewidth=2.5)


def _short(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
