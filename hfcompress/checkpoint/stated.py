"""The types of what `quantization_config` states, checked before any of it is used."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..core.errors import CheckpointError

_FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _is_spec(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("kind"), str)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


_MAPPINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "modules": (_is_spec, "a mapping with a `kind`"),
    "coded": (lambda value: isinstance(value, Mapping), "a mapping that describes a coded stream"),
    "ties": (lambda value: isinstance(value, str), "the name of a tensor"),
    "dtypes": (lambda value: value in _FLOATS if isinstance(value, str) else False, f"one of {', '.join(_FLOATS)}"),
    "counts": (lambda value: type(value) is int and value > 0, "a number of at least 1"),
    "weights_sha256": (_is_digest, "64 hexadecimal digits"),
}


def require_types(stated: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a value of `quantization_config` that is not of its type; None stands for no value."""
    for key, (holds, what) in _MAPPINGS.items():
        value = stated.get(key)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise CheckpointError(f"quantization_config.{key} has to be a mapping from paths, not {short(value)}")
        for path, each in value.items():
            if not isinstance(path, str) or not holds(each):
                raise CheckpointError(f"quantization_config.{key}.{path}: {short(each)} is not {what}")
    digest = stated.get("structure_sha256")
    if digest is not None and not _is_digest(digest):
        raise CheckpointError(f"quantization_config.structure_sha256: {short(digest)} is not 64 hexadecimal digits")


def short(value: Any) -> str:
    """Return a value as it is quoted in a message, which a file must not make pages long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
