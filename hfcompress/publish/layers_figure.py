"""The card's figure of what was taken away: heads, units, bits, zeros and bytes of every block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ..measure.result import Part, Result
from . import rows
from .canvas import AFTER, WIDTH, Bar, bars, drawing, rows_of, save

LAYERS = "layers.png"
_LINE = 0.27  # inches of height a part takes
_MOST = 5  # columns side by side
_ACROSS = 1.85  # inches of width a column takes
_GONE = "gone"


@dataclass(frozen=True)
class Column:
    """A number that parts have: what it is called, how it is read off a part, and how it is written."""

    title: str
    value: Callable[[Part], float | None]
    text: Callable[[float], str]


@dataclass(frozen=True)
class Row:
    """A part of the compressed model, the part of the original at its place, or one of them."""

    after: Part | None
    before: Part | None

    @property
    def name(self) -> str:
        """What the row is called in the compressed model."""
        return self.after.name if self.after else _GONE


BYTES = Column("size", lambda part: part.size_bytes, lambda value: rows.si(value, "B"))
COLUMNS = (
    Column("tokens", lambda part: part.tokens, "{:,.0f}".format),
    Column("heads", lambda part: part.heads, "{:.0f}".format),
    Column("FFN units", lambda part: part.units, "{:.0f}".format),
    Column("channels", lambda part: part.width, "{:.0f}".format),
    Column("bits", lambda part: part.bits, "{:.3g}".format),
    Column("not zero", lambda part: part.nonzeros / part.numbers if part.numbers else None, "{:.0%}".format),
    Column("rank", lambda part: part.rank, "{:.0f}".format),
)


def layer_rows(result: Result) -> list[Row]:
    """Return the parts of the compressed model beside those of the original, then what of that has no counterpart.

    Where blocks were dropped, the numbers are those of the compressed model: which of the original's they were is
    not known here.
    """
    before = {part.name: part for part in result.baseline.layout}
    found = [Row(part, before.pop(part.name, None)) for part in result.compressed.layout]
    return found + [Row(None, part) for part in before.values()]


def changed_columns(found: list[Row]) -> list[Column]:
    """Return the columns in which a part differs from the original, and always the bytes."""
    both = [(row.before, row.after) for row in found]
    return [c for c in COLUMNS if any(a and b and c.value(a) != c.value(b) for a, b in both)] + [BYTES]


def describe_layers(result: Result) -> str:
    """Return what the figure shows, in words, for those who cannot see it."""
    found = layer_rows(result)
    titles = [column.title for column in changed_columns(found)]
    blocks = sum(row.after is not None and row.after.width is not None for row in found)
    gone = sum(row.after is None for row in found)
    return f"{', '.join(titles)} of each of the {blocks} blocks" + (f"; {gone} more are gone" if gone else "")


def write_layers(result: Result, path: Path) -> None:
    """Write the figure as PNG, atomically and with the same bytes for the same result."""
    save(draw_layers(result), path)


def draw_layers(result: Result) -> Figure:
    """Return the figure: a row per part, a column per number that changed, dotted outlines for the original."""
    found = layer_rows(result)
    shown = changed_columns(found)
    bands = [shown[i : i + _MOST] for i in range(0, len(shown), _MOST)]
    across = max(map(len, bands))

    def fill(figure: Figure) -> None:
        grid = figure.subplots(len(bands), across, squeeze=False)
        for axes, band in zip(grid, bands, strict=True):
            for place, axis in enumerate(axes):
                if place >= len(band):
                    axis.set_axis_off()
                    continue
                bars(axis, band[place].title, _bars(found, band[place]), room=1.75)
                rows_of(axis, [row.name if place == 0 else "" for row in found], _places(found))

    return drawing(fill, len(bands) * (_LINE * len(found) + 0.5) + 0.1, max(WIDTH, _ACROSS * across))


def _places(found: list[Row]) -> list[float]:
    return [float(place) for place in range(len(found))]


def _bars(found: list[Row], column: Column) -> list[Bar]:
    drawn = []
    for place, row in zip(_places(found), found, strict=True):
        before, after = (column.value(part) if part else None for part in (row.before, row.after))
        if after is not None or before is not None:
            drawn.append(Bar(place, after or 0.0, row_text(row, column, after), AFTER, before))
    return drawn


def row_text(row: Row, column: Column, value: float | None) -> str:
    """Return what stands at the right of a bar."""
    if row.after is None:
        return ""
    if column is BYTES and row.after.shares is not None:
        return f"as {row.after.shares}"
    return rows.NONE if value is None else column.text(value)
