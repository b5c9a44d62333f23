"""The base of every typed config: immutable, and an unknown key is an error."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Discriminator, Tag

# A setting that is one value or, to say more, a mapping, is annotated
# `Annotated[Annotated[float, PLAIN] | Annotated[Settings, MAPPING], EITHER]`; messages leave the tags out of paths.
_TAGS = ("<plain>", "<mapping>")
PLAIN, MAPPING = Tag(_TAGS[0]), Tag(_TAGS[1])
EITHER = Discriminator(lambda value: _TAGS[isinstance(value, Mapping | BaseModel)])


class StrictModel(BaseModel):
    """A frozen pydantic model that refuses unknown keys; field descriptions are the only documentation of a field."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


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
    part, *rest = loc
    return (part, *_keys(_inside(kinds[0], part), tuple(rest)))


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
