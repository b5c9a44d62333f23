"""From a YAML file and `--set` values to a checked recipe, with the text and the hash a result records."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.json_schema import models_json_schema

from ..core.errors import RecipeError, shown
from ..core.explain import explain
from ..core.registry import create, list_methods
from .plain import check_plain, kind_of, read_file
from .schema import Recipe
from .training import train_schema
from .yaml12 import parse_yaml

# Keys of `data` and `data.unlabelled` that exclude each other: setting the first on the command line drops what the
# file says of the others.
_ALTERNATIVES = {"path": ("dataset", "config", "revision"), "dataset": ("path", "config", "revision")}

_AFTERWARDS = {"title", "benchmark", "require", "publish"}  # keys that come into play when all stages are done


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe with what a result says of it."""

    recipe: Recipe
    text: str  # as given, comments included
    overrides: tuple[str, ...]
    hash: str  # SHA-256 of the resolved recipe

    @property
    def stages_hash(self) -> str:
        """SHA-256 of what decides what the stages do: a run may be resumed to measure more, or against other bounds."""
        return digest({key: value for key, value in _of_stages(self.recipe).items() if key not in _AFTERWARDS})


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe from a YAML file, a mapping or a Recipe, and apply ``dotted.key=value`` overrides.

    Raises RecipeError with the path of every key that is unknown or has a wrong value.
    """
    text, values = _read(source)
    recipe = _validate(overridden(values, overrides))
    return LoadedRecipe(recipe, text, tuple(overrides), recipe_hash(recipe))


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain JSON values, with every default written out, those of the methods included."""
    values = recipe.model_dump(mode="json")
    for stage in values["stages"]:
        stage["methods"] = {
            name: create(name, settings).config.model_dump(mode="json") for name, settings in stage["methods"].items()
        }
    return values


def recipe_hash(recipe: Recipe) -> str:
    """Return the SHA-256 of the resolved recipe as canonical JSON."""
    return digest(resolved(recipe))


def _of_stages(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe without what is not trained by, or only says whether to go on."""
    values = resolved(recipe)
    for key in ("control", "allow_trivial"):
        del values["evaluate"][key]
    return values


def digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain values as canonical JSON."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, with the settings of every registered method, for editors to complete."""
    configs = {name: cls.Config for name, cls in list_methods().items()}
    refs, schema = models_json_schema([(Recipe, "validation"), *((c, "validation") for c in configs.values())])
    definitions = schema["$defs"]
    stage = definitions["Stage"]["properties"]
    _list_methods(stage["methods"], {name: refs[(config, "validation")] for name, config in configs.items()})
    definitions["TrainingArguments"], shared = train_schema()
    definitions.update(shared)
    arguments = {"$ref": "#/$defs/TrainingArguments"}
    stage["train"]["anyOf"] = [arguments, {"type": "null"}]
    train = definitions["Finetune"]["properties"]["train"]
    definitions["Finetune"]["properties"]["train"] = {**arguments, "description": train["description"]}
    root = definitions.pop(refs[(Recipe, "validation")]["$ref"].removeprefix("#/$defs/"))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": definitions}


def _list_methods(schema: dict[str, Any], refs: Mapping[str, Any]) -> None:
    """Replace "any mapping" by the registered methods; null stands for a method's defaults."""
    table = list_methods()
    schema["properties"] = {
        name: {"anyOf": [ref, {"type": "null"}], "description": table[name].info.summary} for name, ref in refs.items()
    }
    schema["additionalProperties"] = False


def _read(source: str | Path | Mapping[str, Any] | Recipe) -> tuple[str, dict[str, Any]]:
    if isinstance(source, Recipe):
        source = source.model_dump(mode="json", exclude_unset=True)
    if isinstance(source, Mapping):
        check_plain(source)
        values = copy.deepcopy(dict(source))
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True), values
    return read_yaml(Path(source))


def read_yaml(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a YAML file and the mapping in it; RecipeError when it cannot be read or holds anything else.

    The message has the name of the nearest file where there is none of that name.
    """
    text = read_file(path)
    values = _mapping(parse_yaml(text, str(path)), str(path))
    check_plain(values)
    return text, values


def _mapping(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        kind = "empty" if values is None else kind_of(values)
        raise RecipeError(f"{where}: a recipe is a mapping with 'model', 'task', 'data' and 'stages'; this is {kind}.")
    return values


def _validate(values: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(error, Recipe)) from error


def overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `values` with ``dotted.key=value`` items applied, in place; RecipeError names one that cannot be."""
    parsed = [_parse_override(item) for item in overrides]
    for path, _ in parsed:
        if path[0] == "data" and path[-1] in _ALTERNATIVES:
            _drop(values, path[:-1], _ALTERNATIVES[path[-1]])
    for path, value in parsed:
        _set(values, path, value)
    return values


def _drop(values: Any, parents: Sequence[str], keys: Sequence[str]) -> None:
    """Take these keys out of the mapping that `parents` leads to, where there is one."""
    for part in parents:
        values = values.get(part) if isinstance(values, dict) else None
    if isinstance(values, dict):
        for key in keys:
            values.pop(key, None)


def _parse_override(item: str) -> tuple[list[str], Any]:
    key, equals, text = item.partition("=")
    path = key.strip().split(".")
    check_plain(item, "--set")
    if not equals or not all(path):
        raise RecipeError(
            f"--set {shown(item)[1:-1]}: write it as dotted.key=value, such as --set stages.0.train.max_steps=100."
        )
    if text.lstrip().startswith((">", "<")):  # a bound, such as >=4: in YAML, > begins text of several lines
        return path, text.strip()
    value = parse_yaml(text, f"--set {key}")
    check_plain(value, f"--set {key}")
    return path, value


def _set(values: Any, path: Sequence[str], value: Any) -> None:
    for depth, part in enumerate(path):
        key = _key(values, part, path[: depth + 1])
        if depth == len(path) - 1:
            values[key] = value
            return
        if isinstance(values, dict) and values.get(key) is None:
            values[key] = {}
        values = values[key]


def _key(values: Any, part: str, path: Sequence[str]) -> str | int:
    """Return `part` as a key or index of `values`; a key need not exist yet, an index must."""
    name = ".".join(path)
    if isinstance(values, dict):
        return part
    if not isinstance(values, list):
        raise RecipeError(f"--set {name}: {'.'.join(path[:-1])} is {shown(values)}, which has no keys.")
    if not part.isdecimal() or len(part) > 9 or int(part) >= len(values):
        known = ", ".join(str(i) for i in range(len(values)))
        raise RecipeError(
            f"--set {shown(name)[1:-1]}: {shown(part)} is not an index of {'.'.join(path[:-1])}. Known: {known}."
        )
    return int(part)
