"""The table of methods: filled by explicit imports, and a duplicate name is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from .config import StrictModel
from .errors import RecipeError, nearest
from .explain import explain
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
