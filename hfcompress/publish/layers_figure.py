"""The card's figure of what was taken away: heads, units, bits, zeros and bytes of every block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ..measure.result import Part, Result, StageRecord
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
    gone: str = _GONE

    @property
    def name(self) -> str:
        """What the row is called: as in the original where it is known what became of its parts."""
        return self.after.name if self.after else self.gone


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
    """Return the parts of both models side by side; see `paired`."""
    return paired(result.baseline.layout, result.compressed.layout, result.stages)


def paired(before: Sequence[Part], after: Sequence[Part], stages: Sequence[StageRecord] = ()) -> list[Row]:
    """Return the parts of the compressed model beside those of the original, dropped ones at their place.

    Blocks keep the original's numbers where the stages report which of them are left; where they do not, the numbers
    are the compressed model's, and what of the original has no counterpart comes last.
    """
    names = _numbers(before, after, stages)
    if names is None:
        left = {part.name: part for part in before}
        found = [Row(part, left.pop(part.name, None)) for part in after]
        return found + [Row(None, part) for part in left.values()]
    called = {
        part.name: part.model_copy(
            update={
                "name": names.get(part.name, part.name),
                "shares": part.shares and names.get(part.shares, part.shares),
            }
        )
        for part in after
    }
    by_name = {part.name: part for part in called.values()}
    found = [Row(by_name.pop(part.name, None), part, f"{part.name}, {_GONE}") for part in before]
    return found + [Row(part, None) for part in by_name.values()]


def _numbers(before: Sequence[Part], after: Sequence[Part], stages: Sequence[StageRecord]) -> dict[str, str] | None:
    """Return what each block of the compressed model is called in the original; None where no stage tells."""
    left = [part.name for part in before if part.width is not None]
    blocks = [part.name for part in after if part.width is not None]
    for numbers in (report for stage in stages for report in stage.report.values()):
        flags = [numbers.get(f"block{i}_kept") for i in range(len(left))]
        if left and None not in flags and f"block{len(left)}_kept" not in numbers:
            left = [name for name, kept in zip(left, flags, strict=True) if kept]
    told = len(left) == len(blocks) and len(left) < sum(part.width is not None for part in before)
    return dict(zip(blocks, left, strict=True)) if told else None


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
