"""The table a run ends with: before, after, ratio."""

from __future__ import annotations

from rich.table import Table

from ..measure.result import Result
from ..publish.rows import table


def result_table(result: Result) -> Table:
    """Return the rows of the card as a table for the terminal."""
    drawn = Table(title=result.title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    drawn.add_column("")
    for name in ("before", "after", "ratio"):
        drawn.add_column(name, justify="right")
    for row in table(result):
        drawn.add_row(row.name, row.before, row.after, row.change)
    return drawn
