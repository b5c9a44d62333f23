"""What is wrong with a setting, in the words of a recipe: the key's path, and the nearest valid one."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from .config import StrictModel
from .errors import nearest, shown

_LONGEST = 200  # letters of a line about a file; it may quote a value that is most of it

_EXPECTED = {  # in the words of YAML, by pydantic's name of the mistake
    "string_type": "expected a text",
    "dict_type": "expected a mapping of keys to values",
    "model_type": "expected a mapping of keys to values",
    "list_type": "expected a list",
    "bool_type": "expected true or false",
}


def explain(error: ValidationError, model: type[StrictModel], where: str = "") -> str:
    """Turn pydantic's error into lines of ``path: what is wrong (got value). Did you mean …?``, one for each key.

    What may be one kind of value or another says of both why it is not.
    """
    lines: dict[str, list[tuple[str, str]]] = {}
    for item in error.errors():
        path = key_path(where, item["loc"], model)
        lines.setdefault(path, []).append(_said(item, model))
    return "\n".join(f"{path}: {'; or '.join(m for m, _ in said)}{said[0][1]}" for path, said in lines.items())


def first_fault(error: ValueError, model: type[StrictModel]) -> str:
    """Return the first thing that is wrong with a file that a program wrote, in a line."""
    if not isinstance(error, ValidationError):
        return "it is not UTF-8 text."
    item = error.errors()[0]
    if item["type"] == "json_invalid":  # what was got would be the whole file
        return f"{item['msg'][:1].lower()}{item['msg'][1:]}."
    line = explain(error, model).splitlines()[0].removeprefix(": ")  # of the file as a whole no place is said
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _said(item: Any, model: type[StrictModel]) -> tuple[str, str]:
    """Return what is wrong with a value, and the end of the line."""
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        return "unknown key", f" (got {shown(item['input'])}).{nearest(str(key), _keys_at(model, tuple(parents)))}"
    if item["type"] == "missing":
        return "this key is required", "."
    message = _EXPECTED.get(item["type"], item["msg"].removeprefix("Value error, "))
    return message[:1].lower() + message[1:], f" (got {shown(item['input'])})."


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


def key_path(where: str, loc: tuple[Any, ...], model: type[StrictModel]) -> str:
    """Return the dotted path of a key of `model` from where pydantic says it is, which names branches of unions too."""
    return ".".join([where, *map(str, _keys(model, loc))]).strip(".")


def _keys(annotation: Any, loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return `loc` without the names of the branches that unions in `annotation` have."""
    kinds = _branches(annotation)
    if not loc or not kinds:
        return loc
    if len(kinds) > 1:
        rest = loc[1:]
        return _keys(next((kind for kind in kinds if rest and _holds(kind, rest[0])), None), rest)
    return (loc[0], *_keys(_inside(kinds[0], loc[0]), loc[1:]))


def _branches(annotation: Any) -> list[Any]:
    """Return what a value may be, None apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _branches(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for arg in get_args(annotation) for kind in _branches(arg)]
    return [] if annotation in (None, type(None)) else [annotation]


def _holds(kind: Any, part: Any) -> bool:
    """Say whether `part` is a key or an index of a value of this kind."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return part in kind.model_fields
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping) is not isinstance(part, int)


def _inside(kind: Any, part: Any) -> Any:
    """Return the annotation of what is at `part` of a value of this kind; None where there is no telling."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(part))
        return None if field is None else field.annotation
    args = get_args(kind)
    return args[-1] if args and args[-1] is not Ellipsis else next(iter(args), None)
