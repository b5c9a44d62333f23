"""A suite: methods by models by seeds, each cell of which is a recipe of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, create_model, field_validator, model_validator

from ..core.config import StrictModel
from ..core.errors import RecipeError, nearest
from ..core.explain import explain
from ..core.method import Category
from .load import LoadedRecipe, load_recipe, overridden, read_yaml
from .schema import Recipe

_OF_A_MODEL = ("model", "revision", "processor", "dtype", "task", "data", "finetune", "evaluate", "benchmark")
_OF_A_METHOD = ("student", "teacher", "teacher_cache", "stages")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def _keys(names: Sequence[str]) -> dict[str, Any]:
    """Return fields of these keys of a recipe; the recipe itself, once it is whole, checks their values."""
    return {name: (Any, Field(None, description=Recipe.model_fields[name].description)) for name in names}


class _Part(StrictModel):
    recipe: str | None = Field(
        None, description="Recipe file, relative to the suite, that gives what is not given here."
    )

    def values(self, keys: Sequence[str], folder: Path) -> dict[str, Any]:
        """Return this part's share of a recipe, as given here or in the recipe named."""
        base = read_yaml(folder / self.recipe)[1] if self.recipe else {}
        given = self.model_dump(include=set(keys), exclude_unset=True)
        return {key: value for key, value in {**base, **given}.items() if key in keys}


class _ModelPart(_Part):
    """A model with its data, and how one trains on it."""

    train: dict[str, Any] = Field(
        default_factory=dict, description="TrainingArguments of every stage that trains and does not say otherwise."
    )


class _MethodPart(_Part):
    """A way to compress: the stages of a recipe, and the survey's category."""

    category: Category = Field(description="Which of the seven categories it stands for.")
    models: list[str] | None = Field(None, min_length=1, description="Models it is tried on; by default all.")
    set: dict[str, Any] = Field(
        default_factory=dict, description="Values to change in the recipe named, by dotted key, as --set does."
    )


SuiteModel: Any = create_model("SuiteModel", __base__=_ModelPart, **_keys(_OF_A_MODEL))
SuiteMethod: Any = create_model("SuiteMethod", __base__=_MethodPart, **_keys(_OF_A_METHOD))


class Suite(StrictModel):
    """What `hfcompress compare` is told."""

    title: str = Field(description="Title of the report.")
    notes: str | None = Field(None, description="Text under the title, such as what was left out and why.")
    models: dict[str, SuiteModel] = Field(min_length=1, description="Models with their data, by a name for tables.")
    methods: dict[str, SuiteMethod] = Field(min_length=1, description="Ways to compress, by a name for tables.")
    seeds: list[int] = Field([42], min_length=1, description="Every cell runs once with each.")
    control: bool = Field(
        True, description="Give the uncompressed model the training of each cell, once for all that train alike."
    )
    evaluate: dict[str, Any] = Field(default_factory=dict, description="`evaluate` of every recipe.")
    benchmark: dict[str, Any] | None = Field(default_factory=dict, description="`benchmark` of every recipe.")

    @field_validator("models", "methods")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} names folders: use letters, digits, '.', '_' and '-'")
        return value

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError("every seed once: a seed repeated gives the same result")
        return value

    @model_validator(mode="after")
    def _known_models(self) -> Suite:
        for name, method in self.methods.items():
            for model in method.models or ():
                if model not in self.models:
                    raise ValueError(f"methods.{name}.models: no model {model!r}.{nearest(model, self.models)}")
        return self


@dataclass(frozen=True)
class Cell:
    """One method on one model with one seed: a recipe, whole, with the `--set` values that concern it."""

    model: str
    method: str
    category: Category
    seed: int
    loaded: LoadedRecipe

    @property
    def name(self) -> str:
        """The cell's folder and its name in tables of cells."""
        return f"{self.method}-{self.model}-{self.seed}"


@dataclass(frozen=True)
class LoadedSuite:
    """A checked suite: its text as given, and every cell."""

    suite: Suite
    text: str
    cells: tuple[Cell, ...]


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> LoadedSuite:
    """Read a suite, apply ``dotted.key=value`` overrides, and make and check the recipe of every cell.

    An override of ``models.NAME.KEY`` is one of KEY in the recipes of that model, so that no local path enters them.
    Raises RecipeError that names the cell, and the key in its recipe.
    """
    path = Path(path)
    text, values = read_yaml(path)
    theirs, own = _split(overrides, values.get("models"))
    try:
        suite = Suite.model_validate(overridden(values, own))
    except ValidationError as error:
        raise RecipeError(explain(error, Suite)) from error
    cells, problems = [], []
    for model, method, seed in _grid(suite):
        try:
            cells.append(_cell(suite, path.parent, model, method, seed, theirs.get(model, ())))
        except RecipeError as error:
            problems.append(f"{method} on {model}: {error}")
    if problems:
        raise RecipeError("\n".join(dict.fromkeys(problems)))
    return LoadedSuite(suite, text, tuple(cells))


def _split(overrides: Sequence[str], models: Any) -> tuple[dict[str, list[str]], list[str]]:
    """Return what overrides say of each model's recipes, and those of the suite itself."""
    theirs: dict[str, list[str]] = {}
    own = []
    for item in overrides:
        first, _, rest = item.partition(".")
        name, _, key = rest.partition(".")
        if first != "models" or not key or key.partition("=")[0].partition(".")[0] not in _OF_A_MODEL:
            own.append(item)
        elif not isinstance(models, Mapping) or name not in models:
            raise RecipeError(f"--set {item}: the suite has no model {name!r}.{nearest(name, models or ())}")
        else:
            theirs.setdefault(name, []).append(key)
    return theirs, own


def _grid(suite: Suite) -> Iterator[tuple[str, str, int]]:
    """Yield model, method and seed; all methods with the first seed before any with the second."""
    for seed in suite.seeds:
        for model in suite.models:
            for name, method in suite.methods.items():
                if method.models is None or model in method.models:
                    yield model, name, seed


def _cell(suite: Suite, folder: Path, model: str, method: str, seed: int, overrides: Sequence[str]) -> Cell:
    of_model, of_method = suite.models[model], suite.methods[method]
    values = {**of_model.values(_OF_A_MODEL, folder), **of_method.values(_OF_A_METHOD, folder), "seed": seed}
    values["evaluate"] = _over(_over(suite.evaluate, values.get("evaluate")), {"control": suite.control})
    values["benchmark"] = _merged(suite.benchmark, values.get("benchmark"), "benchmark" in of_model.model_fields_set)
    values = overridden(values, [f"{key}={yaml.safe_dump(value)}" for key, value in of_method.set.items()])
    stages = values.get("stages")
    for stage in stages if isinstance(stages, list) else ():
        if isinstance(stage, dict) and isinstance(stage.get("train"), dict):
            stage["train"] = {**of_model.train, **stage["train"]}
    loaded = load_recipe({"title": f"{method} on {model}", **values}, overrides)
    return Cell(model, method, of_method.category, seed, loaded)


def _merged(shared: dict[str, Any] | None, own: Any, said_here: bool) -> Any:
    """Return how to measure: a model's own words on top of the suite's; a recipe merely referred to has none."""
    if shared is None or (said_here and own is None):
        return None
    return _over(shared, own) if said_here else shared


def _over(shared: Any, own: Any) -> Any:
    """Return a mapping's values on top of what is shared; anything else as it is, for the recipe to refuse."""
    if own is None:
        return shared
    return {**shared, **own} if isinstance(shared, Mapping) and isinstance(own, Mapping) else own
