"""Tables for the terminal: what a run ends with, and runs side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ..core.errors import HFCompressError
from ..core.files import between, write_text
from ..measure.result import Result
from ..publish.comparison import compare, comparison_markdown
from ..publish.rows import table


def result_table(result: Result) -> Table:
    """Return the rows of the card as a table for the terminal."""
    drawn = Table(title=escape(result.title), title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    drawn.add_column("")
    for name in ("before", "after", "ratio"):
        drawn.add_column(name, justify="right")
    for row in table(result):
        drawn.add_row(*map(escape, (row.name, row.before, row.after, row.change)))
    return drawn


def comparison_tables(results: Mapping[str, Result]) -> Iterator[Table]:
    """Yield a table per model and data set, with a row per run."""
    for found in compare(results):
        title = escape(found.title)
        drawn = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
        for column in found.columns:
            drawn.add_column(escape(column))
        for row in found.rows:
            drawn.add_row(*map(escape, row))
        drawn.caption = escape(" ".join(found.notes)) or None
        yield drawn


def write_comparison(results: Mapping[str, Result], folders: list[Path], path: Path) -> None:
    """Put the tables between the markers of a markdown file; HFCompressError when it is missing or has no markers."""
    write_text(path, with_comparison(results, folders, path))


def with_comparison(results: Mapping[str, Result], folders: list[Path], path: Path) -> str:
    """Return a markdown file with the tables between its markers; rows link to cards where one folder holds all runs.

    Raises HFCompressError as `write_comparison`.
    """
    holder = folders[0] if len(folders) == 1 and not (folders[0] / "result.json").is_file() else None
    cards = None if holder is None else {name: _link(holder / name, path.parent) for name in results}
    try:
        return between(path.read_text(encoding="utf-8"), "runs", comparison_markdown(results, cards))
    except (OSError, ValueError) as error:
        raise HFCompressError(f"cannot write the table to {path}: {error}") from error


def _link(run: Path, here: Path) -> str:
    """Return where the card of a run is, as seen from `here`: in its model's folder, or published without one."""
    card = run / "README.md"
    return Path(os.path.relpath(card if card.is_file() else run / "model" / "README.md", here)).as_posix()
