"""How far a long piece of work is: loops say it, and whoever listens shows it; nobody has to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
OnProgress = Callable[[str, float], None]  # what is being done, and the share of the whole that is done


def silent(text: str, fraction: float) -> None:
    """Show nothing."""


_listener: ContextVar[OnProgress] = ContextVar("listener", default=silent)


@contextlib.contextmanager
def listening(on_progress: OnProgress) -> Iterator[None]:
    """Tell `on_progress` of every `track` inside the block."""
    outer = _listener.get()
    _listener.set(on_progress)
    try:
        yield
    finally:
        _listener.set(outer)


def track(items: Sequence[T], name: Callable[[T], str] = str) -> Iterator[T]:
    """Yield `items` and tell the listener how many are done; a `track` inside the loop's body divides its step."""
    outer = _listener.get()
    try:
        for index, item in enumerate(items):
            outer(name(item), index / len(items))
            _listener.set(_part(outer, index, len(items)))
            yield item
        if items:
            outer(name(items[-1]), 1.0)
    finally:
        _listener.set(outer)


def _part(outer: OnProgress, index: int, count: int) -> OnProgress:
    return lambda text, fraction: outer(text, (index + fraction) / count)
