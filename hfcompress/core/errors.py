"""Typed exceptions; each is the user's to read, so each message says what to do next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from .secrets import masked

_LONGEST = 3500  # bytes of a message; what it quotes of the user's may be of any length
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, halves of characters


class HFCompressError(Exception):
    """Any error this package raises on purpose; the command line prints it without a traceback.

    Access tokens in the message are masked: libraries quote requests and addresses in their errors.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(masked(message))

    def __str__(self) -> str:
        return readable(super().__str__())


def readable(text: str) -> str:
    """Return a message fit for any terminal: of a length that can be read, control characters written as in Python."""
    text = _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    if len(encoded := text.encode()) <= _LONGEST:
        return text
    kept = encoded[:_LONGEST].decode(errors="ignore")
    return f"{kept} … ({len(text) - len(kept):,} more letters)"


def shown(value: object) -> str:
    """Return a value as Python writes it, cut short where that is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in itself
        return f"a {type(value).__name__}"
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


class WriteError(HFCompressError):
    """A file cannot be written; `place` is where it was to lie."""

    def __init__(self, message: str, place: object = None) -> None:
        super().__init__(message)
        self.place = place


class DiskFullError(HFCompressError):
    """There is no room left on a disk; what was written before is kept, and the same command goes on from there."""


class LockedError(HFCompressError):
    """Another process is writing into a folder."""


class RecipeError(HFCompressError):
    """The recipe, or a value set on the command line, is not valid."""


class TargetError(HFCompressError):
    """A target pattern matched nothing, or a method found nothing to change."""


class FamilyError(TargetError):
    """The model type is not described in the table of families, or has no such parts."""


class LifecycleError(HFCompressError):
    """A method was driven out of order, or in a stage that cannot serve it."""


class DataError(HFCompressError):
    """The data set cannot be read, is empty, or does not fit the model."""


class RowError(DataError):
    """One row of a split cannot be used; `row` is its place among the rows that were given, from 0."""

    def __init__(self, message: str = "", row: int = 0) -> None:
        super().__init__(message)
        self.row = row


class CheckpointError(HFCompressError):
    """A checkpoint is damaged, does not fit, or asks for what it may not have."""


class ModelError(HFCompressError):
    """A model no longer runs, or answers in another form, after what was done to it."""


class RemoteCodeError(CheckpointError):
    """A checkpoint or its processor can't be loaded without Python code that comes with it, which is never run."""


class ExportError(HFCompressError):
    """An export failed or does not agree with the model it came from."""


class MeasureError(HFCompressError):
    """A measurement could not be taken."""


class PublishError(HFCompressError):
    """Pushing to the Hub failed; nothing half-written is left behind."""


_SHOWN = 12
_QUOTED = 200  # letters of a value that a message quotes


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of `known`, or what there is when none is close."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name[:_QUOTED], known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    more = f", … ({len(known) - _SHOWN} more)" if len(known) > _SHOWN else ""
    return f" Known: {', '.join(known[:_SHOWN])}{more}." if known else ""
