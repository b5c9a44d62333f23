"""Loading tensors in the very dtype they are stored in, whatever the model is asked for in: to compare them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_KEPT: ContextVar[bool] = ContextVar("hfcompress_keeps_stored_dtypes", default=False)


@contextlib.contextmanager
def as_stored() -> Iterator[None]:
    """Let checkpoints of ours that are loaded within keep every tensor's dtype."""
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)


def keeps_dtypes() -> bool:
    """Say whether checkpoints are being loaded as they are stored."""
    return _KEPT.get()
