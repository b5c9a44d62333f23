"""The one place that loads configs, models, tokenizers and processors: code that lies beside them is never run.

Left to itself, transformers asks on the terminal whether to run a folder's own code, and takes `y` from a pipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import RemoteCodeError

NO_REMOTE_CODE: Mapping[str, bool] = MappingProxyType({"trust_remote_code": False})


def from_pretrained(loader: Any, source: str | Path, **options: Any) -> Any:
    """Return ``loader.from_pretrained(source, **options)``; RemoteCodeError when that needs code from `source`."""
    try:
        return loader.from_pretrained(str(source), **options, **NO_REMOTE_CODE)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise RemoteCodeError(
            f"{source} has to run Python code of its own to be loaded by {loader.__name__} (`auto_map` in its config "
            "files), and hfcompress runs no code that comes with a model. Choose a checkpoint of a model type that "
            "transformers has itself; a tokenizer or image processor can be taken from another one by the recipe's "
            "`processor`."
        ) from error
