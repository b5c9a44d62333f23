"""What a load without this package says: transformers refuses the config, in the words that mend it.

The config asks for kinds of attention and of experts that no library has, and whose name is the advice. Transformers
raises when it builds the model, whatever is said of mismatched sizes; the quantizer of this package takes the names
away before that. Only who names kinds of both in the call is not told so, and gets the report of sizes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError
from .stated import short

ADVICE = "this checkpoint is compressed: pip install hfcompress; import hfcompress"
KEYS = ("attn_implementation", "experts_implementation")  # transformers checks both, whatever the model has


def announce_(config: Any) -> None:
    """Let the config, when it is written, say what loading it takes."""
    for key in KEYS[getattr(config, "output_attentions", False) is True :]:  # attention is returned by one kind only
        setattr(config, key, ADVICE)


def silence_(config: Any) -> None:
    """Take the advice off a config that is being written or was read."""
    for key in KEYS:
        if vars(config).get(key) == ADVICE:
            delattr(config, key)
        if getattr(config, f"_{key}", None) == ADVICE:
            setattr(config, f"_{key}", None)


def require_announced(source: str | Path) -> None:
    """Raise CheckpointError where the config in folder `source` is of a compressed checkpoint and no longer says so.

    Transformers, which then never asks this package, names what it stumbled over instead.
    """
    try:
        config = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # told by who reads it next
        return
    if not isinstance(config, dict) or ADVICE not in (config.get(key) for key in KEYS):
        return
    stated = config.get("quantization_config")
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    if method != "hfcompress":
        what = "quantization_config.quant_method" if isinstance(stated, dict) else "quantization_config"
        found = method if isinstance(stated, dict) else stated
        is_what = "is missing" if found is None else f"is {short(found)}"
        raise CheckpointError(
            f"{source}/config.json: {what} {is_what}, but the checkpoint was compressed with hfcompress, which writes "
            "quant_method: hfcompress there. Download or copy config.json again"
        )
