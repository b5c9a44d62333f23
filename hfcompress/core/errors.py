"""Typed exceptions; each is the user's to read, so each message says what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HFCompressError(Exception):
    """Any error this package raises on purpose; the command line prints it without a traceback."""


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


class CheckpointError(HFCompressError):
    """A checkpoint is damaged, does not fit, or asks for what it may not have."""


class RemoteCodeError(CheckpointError):
    """A checkpoint or its processor can't be loaded without Python code that comes with it, which is never run."""


class ExportError(HFCompressError):
    """An export failed or does not agree with the model it came from."""


class MeasureError(HFCompressError):
    """A measurement could not be taken."""


class PublishError(HFCompressError):
    """Pushing to the Hub failed; nothing half-written is left behind."""


_SHOWN = 12


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of `known`, or what there is when none is close."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    more = f", … ({len(known) - _SHOWN} more)" if len(known) > _SHOWN else ""
    return f" Known: {', '.join(known[:_SHOWN])}{more}." if known else ""
