"""Hashes by which an example is found again in another split: of texts, of pixels, of files of images.

Each is 64 bits, so of a million examples against ten thousand two others are taken for one in a run of a billion.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image

from ..core.errors import DataError

NO_EXAMPLE = 0  # the key of a blank text: two of these are no copy of each other
_ROWS = 1000
_WHOLE, _PART = 1 << 16, 1 << 13  # bytes: of larger files the size and three parts are hashed


def text_keys(dataset: Dataset) -> np.ndarray:
    """Return a hash of each text, or pair, (rows,) of uint64: alike whatever case, blanks and way to write accents."""
    columns = [name for name in ("text", "text_pair") if name in dataset.column_names]
    found = (
        _hash("\0".join(map(plain_text, row)).encode("utf-8", "surrogatepass"))
        for rows in dataset.select_columns(columns).iter(_ROWS)
        for row in zip(*(rows[name] for name in columns), strict=True)
    )
    return np.fromiter(found, np.uint64, len(dataset))


def plain_text(text: str) -> str:
    """Return a text as it is compared: in NFC, in one case, with single blanks."""
    folded = text.casefold()
    return " ".join((folded if folded.isascii() else unicodedata.normalize("NFC", folded)).split())


def pixel_keys(encoded: Dataset) -> np.ndarray:
    """Return a hash of each image's pixels as the model reads them, (rows,) of uint64."""
    found = (
        _hash(np.ascontiguousarray(image).tobytes())
        for rows in encoded.select_columns(["pixel_values"]).with_format("numpy").iter(_ROWS)
        for image in rows["pixel_values"]
    )
    return np.fromiter(found, np.uint64, len(encoded))


def file_keys(dataset: Dataset) -> np.ndarray:
    """Return a hash of each image's file, (rows,) of uint64: of its size and three parts where it is large.

    Raises DataError for a file that cannot be read.
    """
    stored = dataset.select_columns(["image"]).cast_column("image", Image(decode=False))
    found = (_hash(b"".join(_parts(image))) for rows in stored.iter(_ROWS) for image in rows["image"])
    return np.fromiter(found, np.uint64, len(dataset))


def _parts(image: Mapping[str, Any]) -> Iterator[bytes]:
    if (data := image.get("bytes")) is not None:
        yield from _of_large(data) if len(data) > _WHOLE else (data,)
        return
    try:
        yield from _parts_of_file(Path(image["path"]))
    except OSError as error:
        raise DataError(
            f"an image of the data set cannot be read (file {image['path']}): {error.strerror}. Remove its row, or set "
            "data.drop_missing: true to leave out every image that cannot be."
        ) from error


def _parts_of_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        size = path.stat().st_size
        if size <= _WHOLE:
            yield file.read()
            return
        yield str(size).encode()
        for start in _starts(size):
            file.seek(start)
            yield file.read(_PART)


def _of_large(data: bytes) -> Iterator[bytes]:
    yield str(len(data)).encode()
    for start in _starts(len(data)):
        yield data[start : start + _PART]


def _starts(size: int) -> tuple[int, int, int]:
    return 0, (size - _PART) // 2, size - _PART


def _hash(data: bytes) -> int:
    """Return 64 bits of the data's hash; NO_EXAMPLE for none."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") if data else NO_EXAMPLE
