"""What a load without this package says: transformers refuses the config, in the words that mend it.

The config asks for kinds of attention and of experts that no library has, and whose name is the advice. Transformers
raises when it builds the model, whatever is said of mismatched sizes; the quantizer of this package takes the names
away before that. Only who names kinds of both in the call is not told so, and gets the report of sizes.
"""

from __future__ import annotations

from typing import Any

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
