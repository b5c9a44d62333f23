"""The figure of what was taken away, as bars in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..measure.result import Part, StageRecord
from ..publish.layers_figure import BYTES, COLUMNS, Column, Row, changed_columns, paired, row_text

_WIDTH = 6  # characters of a bar


def layer_bars(before: list[Part], after: list[Part], stages: Sequence[StageRecord] = ()) -> Table:
    """Return a row per part with a bar per number; the length is the share of the original's, or of the largest part.

    `before` is empty where the original is not at hand; `stages` tell which of its blocks are left.
    """
    found = paired(before, after, stages)
    columns = changed_columns(found) if before else [c for c in (*COLUMNS, BYTES) if _told(found, c)]
    title = "layer by layer, bars against the original" if before else "layer by layer, bars against the largest"
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.title, no_wrap=True)
    for row in found:
        table.add_row(escape(row.name), *(_cell(row, column, found) for column in columns))
    return table


def _told(found: list[Row], column: Column) -> bool:
    """Return whether blocks differ in this number, or it says how weights are stored; widths that are alike don't."""
    values = [column.value(row.after) for row in found if row.after]
    told = {value for value in values if value is not None}
    return bool(told) and (column.title not in ("tokens", "channels", "not zero") or len(told) > 1)


def _cell(row: Row, column: Column, found: list[Row]) -> Text:
    value = column.value(row.after) if row.after else None
    if value is None:
        return Text(row_text(row, column, None) if row.after and row.after.shares else "")
    full = column.value(row.before) if row.before else None
    full = full or max(column.value(r.after) or 0.0 for r in found if r.after) or 1.0
    filled = min(_WIDTH, max(int(value > 0), round(_WIDTH * value / full)))
    return Text.assemble(("█" * filled, "blue"), ("░" * (_WIDTH - filled), "dim"), " ", row_text(row, column, value))
