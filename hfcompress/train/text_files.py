"""Files of text as bytes: packed ones unpacked, and the encoding that their bytes are in."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ..core.errors import DataError

_PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# what reading a file that is damaged, packed or not, raises
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF8 = ("utf-8", "utf-8-sig")
_HEAD, _CHUNK, _AROUND = 4096, 1 << 20, 24
_USUAL = "cp1252"  # what Windows writes where it writes no UTF-8


def kind_and_stem(path: Path) -> tuple[str, str]:
    """Return the suffix of a file in lower case, without that of its packing, and its name before both."""
    name = Path(path.stem) if path.suffix.lower() in _PACKED else path
    packed = name is not path
    return (name.suffix.lower(), name.stem) if not packed or name.suffix else ("", path.stem)


def is_packed(path: Path) -> bool:
    """Say whether a file is packed, by its suffix."""
    return path.suffix.lower() in _PACKED


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading, unpacked by its suffix (.gz, .bz2, .xz); raises one of DAMAGED."""
    opener = _PACKED.get(path.suffix.lower())
    file: BinaryIO = path.open("rb") if opener is None else opener(path, "rb")
    return file


def open_text(path: Path, encoding: str) -> io.TextIOWrapper:
    """Open a file of text as it is, line ends included."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="")


def encoding_of(path: Path, given: str | None, where: str) -> str:
    """Return the encoding of a text file: the one its first bytes mark, else `given`, else UTF-8.

    Raises DataError for bytes that are no text, or UTF-16 without its mark.
    """
    with open_bytes(path) as file:
        head = file.read(_HEAD)
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if marked is None and given is None and b"\0" in head:
        even, odd = head[::2].count(0), head[1::2].count(0)
        if min(even, odd) * 10 < max(even, odd) > len(head) // 8:
            name = "utf-16-le" if odd > even else "utf-16-be"
            raise DataError(f"{path} looks like UTF-16 without its mark: set {where}.encoding to {name}.")
        raise DataError(f"{path} is not a file of text: it holds zero bytes.")
    return marked or given or "utf-8"


def why_undecodable(path: Path, encoding: str, where: str) -> str:
    """Return what to say of a file that is not in `encoding`: the first byte that is not, its line, and what to do."""
    decoder, before, lines = codecs.getincrementaldecoder(encoding)(), 0, 1
    with open_bytes(path) as file:
        while True:
            chunk = file.read(_CHUNK)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                start = before + error.start - (len(error.object) - len(chunk))
                line = lines + error.object[: error.start].count(b"\n")
                place = f"byte 0x{error.object[error.start]:02x} at position {start:,}, line {line:,}"
                return f"{path} is not {encoding} ({place}). {_advice(error, encoding, where)}"
            if not chunk:
                return f"{path} is not {encoding}."
            before, lines = before + len(chunk), lines + chunk.count(b"\n")


def _advice(error: UnicodeDecodeError, encoding: str, where: str) -> str:
    save = "save the file as UTF-8"
    if encoding not in _UTF8:
        return f"Set {where}.encoding to what it was written in, or {save}."
    around = error.object[max(0, error.start - _AROUND) : error.start + _AROUND]
    line = around[around[: error.start].rfind(b"\n", 0, min(_AROUND, error.start)) + 1 :].split(b"\n")[0]
    try:
        shown = line.decode(_USUAL)
    except UnicodeDecodeError:
        return f"Set {where}.encoding to what it was written in, or {save}."
    return (
        f"Read as {_USUAL} (Windows, Western Europe) it says {shown.strip()!r}: if that is right, set {where}.encoding "
        f"to {_USUAL}, else to what the file was written in; or {save}."
    )
