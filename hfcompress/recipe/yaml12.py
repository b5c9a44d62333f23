"""Strict YAML: numbers and booleans as in YAML 1.2, and a key written twice is an error."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ..core.errors import RecipeError, shown
from .plain import DEEP, MANY

_TEXT = "tag:yaml.org,2002:str"
_AS_WRITTEN = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool")}  # what as a key is the text it is
_FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_DIGITS = 30  # of a whole number; a setting has a few


def _fault(node: Any, what: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where `no` is false and `5e-5` is text: both are wrong in a recipe."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the attribute of the base class
        first: [
            (tag, regexp) for tag, regexp in found if tag.rsplit(":", 1)[1] not in ("bool", "float", "int", "timestamp")
        ]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _measure(node, {}, 0)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.tag in _AS_WRITTEN:  # a label may be called 1 or true
                key_node.tag = _TEXT
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _fault(key_node, f"the key {shown(key)} is not text")
            if key in seen:
                raise _fault(key_node, f"the key {shown(key)} occurs twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _resolve(kind: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"^(?:{pattern})$"), list(first))


_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("int", r"[-+]?\d+", "-+0123456789")
_resolve("float", _FLOAT.pattern, "-+.0123456789")


def _whole(loader: _Loader, node: Any) -> int:
    if len(node.value) > _DIGITS:
        raise _fault(node, f"a number of {len(node.value)} digits")
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
_Loader.yaml_constructors = {  # nothing but what JSON has too: no dates, sets, bytes
    tag: function
    for tag, function in _Loader.yaml_constructors.items()
    if tag is None or tag.rsplit(":", 1)[1] in ("null", "bool", "int", "float", "str", "seq", "map")
}


def _measure(node: Any, sizes: dict[int, int | None], depth: int) -> int:
    """Return how many values a node stands for, those of an alias counted wherever it stands; fails on too many."""
    if id(node) in sizes:
        if (size := sizes[id(node)]) is None:
            raise _fault(node, "an alias within what it names")
        return size
    sizes[id(node)] = None
    inner = [] if isinstance(node, yaml.ScalarNode) else node.value
    parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
    total = 1 + sum(_measure(part, sizes, depth + 1) for part in parts)
    if total > MANY or depth > DEEP:
        raise _fault(node, f"more than {MANY:,} values, or {DEEP} levels of them")
    sizes[id(node)] = total
    return total


def parse_yaml(text: str, where: str) -> Any:
    """Return the values in `text`; RecipeError names `where`, line and column of what is wrong."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{where}{place}: not valid YAML: {error.problem or error.context}.") from error
    except RecursionError as error:
        raise RecipeError(f"{where}: not valid YAML: values within values, too many levels of them.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not valid YAML: {error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:  # of a tag: !!int x
        raise RecipeError(f"{where}: not valid YAML: a value is not of the kind that its tag says.") from error
