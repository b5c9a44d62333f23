"""Access tokens of the Hub never stand in a message."""

from __future__ import annotations

import re

# User, organization and OAuth tokens of the Hub, JSON web tokens, and whatever follows "Bearer".
_TOKEN = re.compile(
    r"\b(?:hf|api_org)_(?:[a-z]+_)?[A-Za-z0-9]{20,}\b|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+|(?<=\bBearer )[^\s'\",;]+"
)


def masked(text: str, *secrets: str) -> str:
    """Return `text` with every `secret` and everything that looks like an access token replaced by ``***``."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return _TOKEN.sub("***", text)
