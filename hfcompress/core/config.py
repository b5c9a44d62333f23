"""The base of every typed config, immutable and without unknown keys, and what is wrong with one in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, ValidationError

from .errors import nearest

# A setting that is one value or, to say more, a mapping, is annotated
# `Annotated[Annotated[float, PLAIN] | Annotated[Settings, MAPPING], EITHER]`; messages leave the tags out of paths.
_TAGS = ("<plain>", "<mapping>")
PLAIN, MAPPING = Tag(_TAGS[0]), Tag(_TAGS[1])
EITHER = Discriminator(lambda value: _TAGS[isinstance(value, Mapping | BaseModel)])


class StrictModel(BaseModel):
    """A frozen pydantic model that refuses unknown keys; field descriptions are the only documentation of a field."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def key_path(where: str, loc: tuple[Any, ...]) -> str:
    """Return the dotted path of a key from where pydantic says it is."""
    return ".".join([where, *(str(part) for part in loc if part not in _TAGS)]).strip(".")


def explain(error: ValidationError, model: type[StrictModel], where: str = "") -> str:
    """Turn pydantic's error into lines of ``path: what is wrong (got value). Did you mean …?``."""
    return "\n".join(_line(item, model, where) for item in error.errors())


def _line(item: Any, model: type[StrictModel], where: str) -> str:
    path = key_path(where, item["loc"])
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        return f"{path}: unknown key (got {item['input']!r}).{nearest(str(key), _keys_at(model, tuple(parents)))}"
    if item["type"] == "missing":
        return f"{path}: this key is required."
    message = item["msg"].removeprefix("Value error, ")
    return f"{path}: {message[:1].lower() + message[1:]} (got {item['input']!r})."


def _keys_at(model: type[StrictModel], loc: tuple[Any, ...]) -> list[str]:
    """Return the field names of the nested model that `loc` leads to."""
    for part in loc:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        inner = next((a for a in _flatten(field.annotation) if issubclass(a, StrictModel)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _flatten(annotation: Any) -> list[type]:
    """Return every class that occurs in a type annotation, however deep."""
    args = getattr(annotation, "__args__", ())
    found = [annotation] if isinstance(annotation, type) and not args else []
    for arg in args:
        found += _flatten(arg)
    return found
