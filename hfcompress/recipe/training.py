"""The `train:` mappings of a recipe, checked against the real `transformers.TrainingArguments`."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..core.errors import nearest

if TYPE_CHECKING:
    from transformers import TrainingArguments

# Fields that another part of the recipe or of the command line decides, and which.
OWNED: dict[str, str] = {
    "output_dir": "the run folder decides it; use --output",
    "seed": "set the recipe's top-level 'seed'",
    "resume_from_checkpoint": "use --resume",
    "do_train": "a stage with 'train' trains",
    "do_eval": "set 'eval_strategy'",
    "do_predict": "every run is evaluated at its end",
    "remove_unused_columns": "the task already encodes the data for the model",
    "local_rank": "start the run with torchrun",
    "parallelism_config": "it cannot be written in YAML",
}
_PUSHING = "use the recipe's 'publish' and `hfcompress push`"  # fields whose names begin with hub_ or push_to_hub


SAVE_STRATEGY = "epoch"  # of a run, unless the recipe says otherwise
_EVALUATING = ("load_best_model_at_end", "eval_on_start")
_PICKING = (*_EVALUATING, "eval_strategy", "save_strategy", "eval_steps", "save_steps", "metric_for_best_model")


def _arguments() -> type[TrainingArguments]:
    from transformers import TrainingArguments  # brings peft and bitsandbytes, seconds that only `train:` needs

    return TrainingArguments


def _owner(key: str) -> str | None:
    """Return which other part decides a field of TrainingArguments, and None where the recipe does."""
    return _PUSHING if key.startswith(("hub_", "push_to_hub")) else OWNED.get(key)


@functools.cache
def training_fields() -> Mapping[str, Any]:
    """Return the type of every TrainingArguments field a recipe may set, by name."""
    hints = typing.get_type_hints(_arguments())
    return {f.name: hints[f.name] for f in dataclasses.fields(_arguments()) if f.init and not _owner(f.name)}


def check_train(train: Mapping[str, Any], where: str) -> list[str]:
    """Return one message per entry of a `train:` mapping that TrainingArguments would not take."""
    found = (_problem(str(key), value, f"{where}.{key}") for key, value in train.items())
    return [problem for problem in found if problem] or _picking(train, where)


def _picking(train: Mapping[str, Any], where: str) -> list[str]:
    """Return what TrainingArguments has against these values taken together: when to evaluate, save and pick."""
    given = {"save_strategy": SAVE_STRATEGY, **{key: value for key, value in train.items() if key in _PICKING}}
    evaluates = given.get("eval_strategy", "no") != "no"
    needing = [k for k in _EVALUATING if given.get(k) not in (None, False)]
    needing += ["save_strategy: best"] * (given["save_strategy"] == "best")
    if needing and not evaluates:
        return [
            f"{where}: {', '.join(needing)} needs a held-out part of the training split: set 'eval_strategy: epoch'."
        ]
    try:
        _arguments()(output_dir=".", **given)
    except ValueError as error:
        said = " ".join(str(error).split())
        return [f"{where}: {said} (a run saves every epoch unless 'save_strategy' says otherwise)."]
    return []


def train_schema() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON Schema of a `train:` mapping, described by TrainingArguments' own help, and its definitions."""
    adapters = [(name, "validation", _adapter(hint)) for name, hint in training_fields().items()]
    schemas, shared = TypeAdapter.json_schemas(adapters)  # type: ignore[arg-type]
    fields = {f.name: f for f in dataclasses.fields(_arguments())}
    properties = {
        name: {**_closed(schema), "description": fields[name].metadata.get("help", "").strip()}
        for (name, _), schema in schemas.items()
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}, shared.get("$defs", {})


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Leave out "any text" where the alternatives list the choices."""
    options = schema.get("anyOf", [])
    if any("$ref" in option for option in options):
        return {"anyOf": [option for option in options if option != {"type": "string"}]}
    return schema


def _problem(key: str, value: Any, path: str) -> str | None:
    if owner := _owner(key):
        return f"{path}: not set here (got {value!r}): {owner}."
    if key not in training_fields():
        return f"{path}: TrainingArguments has no such field (got {value!r}).{nearest(key, training_fields())}"
    hint = training_fields()[key]
    try:
        _adapter(hint).validate_python(value, strict=True)
    except ValidationError:
        return f"{path}: expected {_describe(hint)} (got {value!r})."
    choices = [str(member.value) for kind in _members(hint) if _is_enum(kind) for member in kind]
    if choices and isinstance(value, str) and value not in choices:
        return f"{path}: no such choice (got {value!r}).{nearest(value, choices)}"
    return None


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=None if dataclasses.is_dataclass(hint) else ConfigDict())


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union, or the one type that `hint` is."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _describe(hint: Any) -> str:
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        dict: "a mapping",
    }
    names = [
        words.get(typing.get_origin(k) or k, f"a {getattr(k, '__name__', k)}")
        for k in _members(hint)
        if not _is_enum(k)
    ]
    return " or ".join(dict.fromkeys(names))
