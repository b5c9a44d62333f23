"""The table of methods: filled by explicit imports, and a duplicate name is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from .config import StrictModel, key_path
from .errors import RecipeError, nearest
from .method import Method

_METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(cls: M) -> M:
    """Add a method class to the table; raises ValueError when its name or its Config is taken."""
    name = cls.info.name
    if name in _METHODS or any(m.Config is cls.Config for m in _METHODS.values()):
        raise ValueError(f"method {name!r} is already registered")
    _METHODS[name] = cls
    return cls


def list_methods() -> Mapping[str, type[Method]]:
    """Return every registered method by name, in order of phase, then name."""
    return dict(sorted(_METHODS.items(), key=lambda item: (item[1].info.phase, item[0])))


def get(name: str, where: str = "methods") -> type[Method]:
    """Return the method called `name`; RecipeError names the nearest when there is none."""
    if name not in _METHODS:
        raise RecipeError(f"{where}: no method is called {name!r}.{nearest(name, _METHODS)}")
    return _METHODS[name]


def create(name: str, settings: Mapping[str, Any] | None, where: str = "methods") -> Method:
    """Build the method called `name` from plain settings; RecipeError carries the key's path."""
    cls = get(name, where)
    try:
        return cls(cls.Config.model_validate(dict(settings or {})))
    except ValidationError as error:
        raise RecipeError(explain(error, cls.Config, f"{where}.{name}")) from error


def name_of(config: StrictModel) -> str:
    """Return the name of the method whose Config class `config` is an instance of."""
    for name, cls in _METHODS.items():
        if isinstance(config, cls.Config):
            return name
    known = ", ".join(m.Config.__qualname__ for m in _METHODS.values())
    raise RecipeError(f"{type(config).__name__} is not the config of a registered method. Known: {known}.")


def explain(error: ValidationError, model: type[StrictModel], where: str = "") -> str:
    """Turn pydantic's error into lines of ``path: what is wrong (got value). Did you mean …?``, one for each key.

    What may be one kind of value or another says of both why it is not.
    """
    lines: dict[str, list[tuple[str, str]]] = {}
    for item in error.errors():
        path = key_path(where, item["loc"], model)
        lines.setdefault(path, []).append(_said(item, model))
    return "\n".join(f"{path}: {'; or '.join(m for m, _ in said)}{said[0][1]}" for path, said in lines.items())


def _said(item: Any, model: type[StrictModel]) -> tuple[str, str]:
    """Return what is wrong with a value, and the end of the line."""
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        return "unknown key", f" (got {item['input']!r}).{nearest(str(key), _keys_at(model, tuple(parents)))}"
    if item["type"] == "missing":
        return "this key is required", "."
    message = item["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:], f" (got {item['input']!r})."


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
