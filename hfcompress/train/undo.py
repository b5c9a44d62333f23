"""A model put back as it was when what was to be done with it fails."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..checkpoint.memory import is_large
from ..modules.parametrizations import strip_
from ..modules.snapshot import Snapshot


@contextlib.contextmanager
def undone_on_error(model: nn.Module, processor: Any = None) -> Iterator[None]:
    """Put model and processor back as they were after an error inside; the error is raised as it was.

    Of a large model (see `is_large`) no copy is kept: as after an interruption, only training wrappers are taken off.
    """
    kept = None if is_large(model) else Snapshot(model)
    settings = copy.deepcopy(vars(processor)) if hasattr(processor, "__dict__") else None
    try:
        yield
    except BaseException as error:  # Ctrl-C included: what is left has to be a model that runs
        with _first_error(error):
            if kept is not None and isinstance(error, Exception):
                kept.restore_()
            else:
                strip_(model)
                error.add_note("the model was being changed when this happened: load it again")
            if settings is not None and isinstance(error, Exception):
                vars(processor).update(settings)
        raise


@contextlib.contextmanager
def _first_error(first: BaseException) -> Iterator[None]:
    """Let a failure of the cleanup inside be a note on the error that it was for."""
    try:
        yield
    except Exception as error:
        first.add_note(f"putting the model back failed as well: {type(error).__name__}: {error}")
