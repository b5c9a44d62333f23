"""How a run that stops leaves its folder: with the reason in its mark, or not at all where nothing came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..core.disk import disk_is_full
from ..core.errors import HFCompressError
from .folder import RunFolder


@contextlib.contextmanager
def noting_why(folder: RunFolder) -> Iterator[None]:
    """Note why the run stops; a folder that it made is emptied instead, where it is refused and has made nothing."""
    try:
        yield
    except BaseException as error:
        refused = isinstance(error, HFCompressError) and not disk_is_full(error)
        with contextlib.suppress(OSError, HFCompressError):  # what stopped it matters more
            if refused and folder.new and not folder.has_work():
                folder.forget()
            else:
                folder.note_stop(_reason(error))
        raise


def _reason(error: BaseException) -> str:
    """Return why a run stopped, in words."""
    if isinstance(error, KeyboardInterrupt):
        return f"it was interrupted ({error.args[0] if error.args else 'SIGINT'})."
    told = str(HFCompressError(str(error)))  # no token is written down
    return told if isinstance(error, HFCompressError) else f"{type(error).__name__}: {told}"
