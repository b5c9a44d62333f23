"""The card's grid of test images with what both models say of them; right and wrong differ in sign and in colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..measure.examples import Example, Examples, read_examples
from .canvas import BEST, drawing, save

GRID = "examples.png"
COLUMNS, LONGEST = 4, 16  # letters of a label
RIGHT, WRONG = "#2f9e5f", "#d9534f"  # on white as on black


def write_grid(run: Path, target: Path) -> str | None:
    """Draw the run's examples, if it has any, to `target`/examples.png and return what to say of them."""
    found = read_examples(run)
    if found is None:
        return None
    save(draw(*found), target / GRID)
    return caption(found[0])


def said_of(run: Path) -> str | None:
    """Return the caption of the run's examples, if it has any."""
    found = read_examples(run)
    return None if found is None else caption(found[0])


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

    def fill(figure: Figure) -> None:
        figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[union-attr, call-arg]  # room for what stands below an image
        axes = figure.subplots(lines, COLUMNS, squeeze=False).flatten()
        for axis in axes:
            axis.set_axis_off()
        for axis, example, tile in zip(axes, found.examples, tiles, strict=False):
            _draw(axis, example, tile)

    return drawing(fill, 2.5 * lines)


def _draw(axis: Axes, example: Example, tile: Image.Image) -> None:
    axis.imshow(np.asarray(tile), interpolation="nearest")
    axis.set_title(f"label: {_short(example.label)}", fontsize=10)
    for line, (who, said) in enumerate((("original", example.baseline), ("compressed", example.compressed))):
        right = said == example.label
        text = f"{who} {'✓' if right else '✗'} {_short(said)}"
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
        axis.annotate(
            text, (0.5, 0), (0, -4 - 13 * line), color=RIGHT if right else WRONG, fontsize=9, ha="center", **place
        )
    if example.chosen:
        axis.set_axis_on()
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set(visible=True, color=BEST, linewidth=2.5)


def _short(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
