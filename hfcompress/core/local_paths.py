"""Where things lie on one machine is nobody else's business: paths in published text keep their last part only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

# An absolute path in running text or YAML: after a blank, a quote, "=", ":" and the like, from "/", "~/" or "C:\" to
# the end of the quotes or of the word. What follows "://" belongs to an address.
_START = r"(?<![\w/.:~*\\)\]>}])"
_ROOT = r"(?:file://)?(?:~[\w.-]*/|/(?=[\w.])|[A-Za-z]:[\\/]|\\\\(?=\w))"
_QUOTED = re.compile(rf"""(?P<quote>["'])(?P<path>{_ROOT}[^"'\n]*)(?P=quote)""")
# a whole value of YAML, which needs no quotes around blanks
_VALUE = re.compile(rf"""(?m)(?<=: )(?P<path>{_ROOT}[^"'#\n\[\]{{}},]*?)(?P<rest>[ \t]*(?:#.*)?)$""")
_BARE = re.compile(rf"""{_START}(?P<path>{_ROOT}[^\s"'<>|,;`\]}}]+)""")


def without_local_paths(text: str) -> str:
    """Return `text` with every absolute path in it cut to its last part."""
    text = _QUOTED.sub(lambda found: found["quote"] + last_part(found["path"]) + found["quote"], text)
    text = _VALUE.sub(lambda found: last_part(found["path"]) + found["rest"], text)
    return _BARE.sub(lambda found: last_part(found["path"]), text)


def shortened(value: Any) -> Any:
    """Return plain values (mappings, lists, strings, numbers) with every absolute path in them cut likewise."""
    if isinstance(value, str):
        return without_local_paths(value)
    if isinstance(value, Mapping):
        return {key: shortened(item) for key, item in value.items()}
    return [shortened(item) for item in value] if isinstance(value, list | tuple) else value


def last_part(path: str) -> str:
    """Return the last part of a path, as Windows or others write it."""
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    return kind(path).name or "local"
