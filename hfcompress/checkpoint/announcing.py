"""What a load without this package says: transformers refuses the config, in the words that mend it.

The config asks for a kind of attention that no library has, and whose name is the advice. Transformers raises when it
builds the model, whatever is said of mismatched sizes; the quantizer of this package takes the name away before that.
Only who asks for a kind of attention by name is not told so, and then gets the report of sizes that do not match.
"""

from __future__ import annotations

from typing import Any

ADVICE = "this checkpoint is compressed: pip install hfcompress; import hfcompress"
_KEY = "attn_implementation"


def announce_(config: Any) -> None:
    """Let the config, when it is written, say what loading it takes."""
    if not getattr(config, "output_attentions", False):  # which a config may ask for with eager attention only
        setattr(config, _KEY, ADVICE)


def silence_(config: Any) -> None:
    """Take the advice off a config that is being written or was read."""
    if vars(config).get(_KEY) == ADVICE:
        delattr(config, _KEY)
    if config._attn_implementation == ADVICE:
        config._attn_implementation = None
