"""Local tables: parquet, CSV, TSV, JSON, JSON lines and plain text, read into memory without a copy in a cache."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet
from datasets import Dataset

from ..core.errors import DataError
from .csv_files import read_csv, typed
from .text_files import DAMAGED, encoding_of, is_packed, kind_and_stem, open_bytes, why_undecodable

_UNTYPED = (".csv", ".tsv")  # kinds whose cells are text until all files of a split are read
TEXT = ".txt"  # a text a line
_BLOCK = 1 << 24  # bytes that are parsed at a time; a longer line takes more


@dataclass(frozen=True)
class Reading:
    """What a recipe says about how files are to be read."""

    where: str = "data"  # for messages: the key of the recipe above `path`
    delimiter: str | None = None
    encoding: str | None = None


def read_tables(files: Iterable[Path], reading: Reading) -> Dataset:
    """Read the files of one split, of one kind, into memory: no copy in a cache, no fingerprint of the files.

    Raises DataError that names the file, and where it is known the line, that cannot be read.
    """
    files = list(files)
    tables = [_read(file, reading) for file in files]
    names = ", ".join(file.name for file in files)
    columns = [sorted(table.column_names) for table in tables]
    try:
        if any(other != columns[0] for other in columns):
            raise pa.ArrowInvalid(f"{', '.join(columns[0])} and other ones")
        table = pa.concat_tables([t.select(tables[0].column_names) for t in tables], promote_options="default")
    except pa.ArrowException as error:
        raise DataError(f"{names} do not have the same columns: {error}") from error
    return Dataset(typed(table) if kind_and_stem(files[0])[0] in _UNTYPED else table)


def kinds() -> tuple[str, ...]:
    """Return the kinds of tables there are, as suffixes; of a split that there is in two kinds the first counts."""
    return tuple(_READERS)


def is_table(path: Path) -> bool:
    """Say whether a file is one that can be read here, by its name."""
    kind = kind_and_stem(path)[0]
    return kind in _READERS and not (kind == ".parquet" and is_packed(path))


def _read(path: Path, reading: Reading) -> pa.Table:
    if not is_table(path):
        raise DataError(
            f"{reading.where}.path: {path} is none of {', '.join(_READERS)}, nor one of the text files among these "
            "packed (.gz, .bz2, .xz)."
        )
    try:
        table = _READERS[kind_and_stem(path)[0]](path, reading)
        table.validate(full=True)  # files may say that they are UTF-8 and not be
        return table
    except UnicodeDecodeError as error:
        encoding = encoding_of(path, reading.encoding, reading.where)
        raise DataError(why_undecodable(path, encoding, reading.where)) from error
    except RecursionError as error:
        raise DataError(f"{path} cannot be read: it is nested too deeply.") from error
    except (ValueError, pa.ArrowException, *DAMAGED) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _read_parquet(path: Path, reading: Reading) -> pa.Table:
    return pa.parquet.read_table(path)


def _separated(usual: str) -> Callable[[Path, Reading], pa.Table]:
    def read(path: Path, reading: Reading) -> pa.Table:
        encoding = encoding_of(path, reading.encoding, reading.where)
        return read_csv(path, encoding, reading.delimiter, usual, reading.where)

    return read


def _read_json(path: Path, reading: Reading) -> pa.Table:
    """Read one JSON object a line, or one array of objects."""
    encoding = encoding_of(path, reading.encoding, reading.where)
    with open_bytes(path) as file:
        head = file.read(64).decode(encoding, errors="ignore").lstrip()
    if head[:1] == "[":
        return _table_of(json.loads(_text(path, encoding)))
    data = b"" if encoding == "utf-8" else _text(path, encoding).encode()
    block = _BLOCK
    while True:
        try:
            with io.BytesIO(data) if data else open_bytes(path) as file:
                table = pa.json.read_json(file, read_options=pa.json.ReadOptions(block_size=block))
            _require_text(table, path, encoding)
            return table
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error) or block >= 1 << 30:
                raise
            block *= 4


def _require_text(table: pa.Table, path: Path, encoding: str) -> None:
    """Raise UnicodeDecodeError for text that Arrow's reader of JSON took as it was."""
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        _text(path, encoding)
        raise


def _table_of(rows: Any) -> pa.Table:
    """Return an array of JSON objects as a table with every key that any of them has."""
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is an array of something else than objects")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _read_lines(path: Path, reading: Reading) -> pa.Table:
    """Read a text a line, as the column `text`."""
    text = _text(path, encoding_of(path, reading.encoding, reading.where))
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    return pa.table({"text": pa.array(lines, pa.string())})


def _text(path: Path, encoding: str) -> str:
    with open_bytes(path) as file:
        return file.read().decode(encoding)


_READERS: dict[str, Callable[[Path, Reading], pa.Table]] = {
    ".parquet": _read_parquet,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".json": _read_json,
    ".jsonl": _read_json,
    TEXT: _read_lines,
}
