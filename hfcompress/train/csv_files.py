"""CSV and TSV files, read as `datasets` reads them: by pandas, whose empty cells, NA, null, None … are missing."""

from __future__ import annotations

import contextlib
import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ..core.errors import DataError
from .text_files import open_bytes, open_text

_DELIMITERS = (",", "\t", ";", "|")
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_SAMPLE = 64  # lines that are looked at to tell what separates their cells
_LONGEST_NUMBER = 64  # characters: a column with longer cells is text
_CHUNK = 10_000  # rows that are read at a time, as in `datasets`
_RAGGED = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")
_TRUTHS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}


@dataclass(frozen=True)
class _Form:
    """How a file says where its cells end."""

    path: Path
    encoding: str
    delimiter: str
    where: str  # for messages: the key of the recipe above `path`
    quoting: int = csv.QUOTE_MINIMAL

    @property
    def cells(self) -> str:
        """How its cells are separated, in words."""
        return f"cells are separated by {_NAMES.get(self.delimiter, repr(self.delimiter))}"


def read_csv(path: Path, encoding: str, delimiter: str | None, usual: str, where: str) -> pa.Table:
    """Return the rows of a file, every cell as text and missing ones as null; `typed` finds the columns' types.

    delimiter: the recipe's; None: the one of comma, tab, semicolon and bar that the first line shows, best `usual`.
    Raises DataError that names the line at fault; UnicodeDecodeError when the file is in another encoding.
    """
    lines = _first_lines(path, encoding)
    form = _Form(path, encoding, delimiter or _shown(path, lines, usual, where), where)
    _check_header(form, lines)
    table, error = _parsed(form)
    if table is not None and not _has_line_breaks(table):
        return table
    line = _misquoted(form)  # an opening quote that none closes takes in the rows after it
    if line is not None and form.delimiter == "\t":
        plain, error = _parsed(replace(form, quoting=csv.QUOTE_NONE))
        if plain is not None:
            return plain
    if line is not None:
        raise DataError(
            f"{path}, line {line}: a quote opens a cell there and none closes it before the next one, so that rows "
            "would be lost. A quote within a text is written twice, and the text in quotes; or write the file as JSON "
            "lines."
        )
    if table is None:
        raise DataError(error)
    return table


def typed(table: pa.Table) -> pa.Table:
    """Return the table with columns of whole numbers, of numbers and of true and false as such; the others are text."""
    return pa.table({name: _typed(table[name]) for name in table.column_names})


def _first_lines(path: Path, encoding: str) -> list[str]:
    with open_text(path, encoding) as file:
        lines = [line for line in islice(file, _SAMPLE) if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty.")
    return lines


def _shown(path: Path, lines: list[str], usual: str, where: str) -> str:
    """Return what separates the names in the first line, `usual` where there is but one name."""
    with _cells_of_any_length():
        widths = {mark: [len(row) for row in csv.reader(lines, delimiter=mark)] for mark in (usual, *_DELIMITERS)}
    found = [mark for mark, width in widths.items() if width[0] > 1]
    if usual in found or not found:
        return usual
    even = [mark for mark in found if len(set(widths[mark])) == 1] or found
    if len(even) > 1:
        marks = " or ".join(map(repr, even))
        raise DataError(f"{path}: its cells may be separated by {marks}: say which in {where}.delimiter.")
    return even[0]


def _check_header(form: _Form, lines: list[str]) -> None:
    with _cells_of_any_length():
        names = [name.strip() for name in next(csv.reader(lines, delimiter=form.delimiter), [])]
    if twice := next((name for name in names if name and names.count(name) > 1), None):
        raise DataError(f"{form.path}: two columns are called {twice!r}. Give every column a name of its own.")


def _parsed(form: _Form) -> tuple[pa.Table | None, str]:
    """Return the rows, or None and why there are none."""
    try:
        tables = list(_chunks(form))
        return (pa.concat_tables(tables), "") if tables else (None, f"{form.path} has no rows.")
    except pd.errors.EmptyDataError:
        return None, f"{form.path} is empty."
    except pd.errors.ParserError as error:
        return None, _told(form, str(error))


def _chunks(form: _Form) -> Iterator[pa.Table]:
    with (
        open_bytes(form.path) as file,
        pd.read_csv(
            file,
            sep=form.delimiter,
            encoding=form.encoding,
            quoting=form.quoting,
            dtype=str,
            chunksize=_CHUNK,
        ) as frames,
    ):
        for frame in frames:
            if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first cells for names of rows
                raise DataError(
                    f"{form.path}: its rows have more cells than the first line has names ({form.cells}). "
                    f"{_told_advice(form)}"
                )
            names = [str(name).strip() for name in frame.columns]
            columns = [pa.array(frame[name], pa.string(), from_pandas=True) for name in frame.columns]
            yield pa.table(columns, names=names)


def _told(form: _Form, error: str) -> str:
    if found := _RAGGED.search(error):
        expected, line, saw = found.groups()
        return (
            f"{form.path}, line {line}: it has {saw} cells, the lines before {expected} ({form.cells}). "
            f"{_told_advice(form)}"
        )
    return f"{form.path} cannot be read: {error.strip().removeprefix('Error tokenizing data. C error: ')}"


def _told_advice(form: _Form) -> str:
    return f"A text that holds the separator stands in quotes; another separator is named in {form.where}.delimiter."


def _has_line_breaks(table: pa.Table) -> bool:
    return any(pc.any(pc.match_substring_regex(column, "[\r\n]")).as_py() for column in table.columns)


def _misquoted(form: _Form) -> int | None:
    """Return the line in which a quoted cell goes on after its closing quote, or has none; None where all is well."""
    before = 0
    with open_text(form.path, form.encoding) as file, _cells_of_any_length():
        reader = csv.reader(file, delimiter=form.delimiter, strict=True)
        try:
            for _ in reader:
                before = reader.line_num
        except csv.Error:
            return before + 1
    return None


@contextlib.contextmanager
def _cells_of_any_length() -> Iterator[None]:
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.null_count == len(column):
        return column
    if pc.max(pc.binary_length(column)).as_py() > _LONGEST_NUMBER:
        return column
    trimmed = pc.utf8_trim_whitespace(column)
    for kind in (pa.int64(), pa.float64()):
        try:
            return trimmed.cast(kind)
        except pa.ArrowInvalid:
            continue
    if set(pc.unique(trimmed).to_pylist()) <= {*_TRUTHS, None}:
        chunks = [pa.array([_TRUTHS.get(word) for word in chunk.to_pylist()], pa.bool_()) for chunk in trimmed.chunks]
        return pa.chunked_array(chunks, pa.bool_())
    return column
