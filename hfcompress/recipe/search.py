"""A search: one recipe, values of it to choose between, and the sizes of model it is to find."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from ..core.config import EITHER, MAPPING, PLAIN, StrictModel
from ..core.errors import RecipeError
from ..core.explain import explain
from .load import LoadedRecipe, digest, load_recipe, read_yaml
from .schema import Bound

Params = dict[str, Any]
Choice = bool | int | float | str | None

# What no trial is told: it is measured on a held-out part of the training split, and leaves nothing but its numbers.
_TRIAL = ("data.splits.held_out=true", "evaluate.control=false", "require={}", "publish=null")
_TIMED = ("speedup", "flops_ratio")  # how the names of what only a benchmark tells begin


class Range(StrictModel):
    """Numbers from `low` to `high`, both of them among these; whole ones where both bounds (and the step) are."""

    low: int | float = Field(description="Least value.")
    high: int | float = Field(description="Largest value.")
    step: int | float | None = Field(None, gt=0, description="Distance between values; default: any number between.")
    log: bool = Field(False, description="Try as many values between 1 and 10 as between 10 and 100.")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high:
            raise ValueError("'low' has to be below 'high'")
        if self.log and (self.step is not None or self.low <= 0):
            raise ValueError("'log' needs a 'low' above zero, and no 'step'")
        return self

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """The two values farthest apart."""
        return self.low, self.high


Values = Annotated[Annotated[list[Choice], PLAIN] | Annotated[Range, MAPPING], EITHER]


class Search(StrictModel):
    """What `hfcompress search` is told."""

    title: str = Field(description="Title of the report; the sizes' cards add their names to it.")
    notes: str | None = Field(None, description="Text under the title.")
    recipe: str = Field(description="Recipe file, relative to this one, that is varied.")
    space: dict[str, Values] = Field(
        min_length=1, description="Values to choose between, by the recipe's dotted key: a list, or {low, high, step}."
    )
    trials: int = Field(30, ge=1, description="Combinations tried, each a run without benchmark.")
    trial: dict[str, Any] = Field(
        default_factory=dict,
        description="Values of the recipe, by dotted key, that hold in trials alone, such as fewer epochs or examples.",
    )
    sizes: dict[str, dict[str, Bound]] = Field(
        min_length=1,
        description="Models to find, by name: bounds as in `require`, such as small: {size_ratio: '>=5'}. Of the "
        "trials within them the best by the metric is run whole. What quality is traded for is the first bound of all.",
    )

    @field_validator("space")
    @classmethod
    def _choices(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, values in value.items():
            if isinstance(values, list) and len(set(map(repr, values))) < max(2, len(values)):
                raise ValueError(f"{key}: give at least two values, each once")
        return value

    @field_validator("sizes")
    @classmethod
    def _bounds(cls, value: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        for name, bounds in value.items():
            if not bounds:
                raise ValueError(f"{name}: give it a bound, such as {{size_ratio: '>=5'}}")
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"{name!r} names a folder: use letters, digits, '_' and '-'")
        return value


@dataclass(frozen=True)
class LoadedSearch:
    """A checked search, with the recipe's path and the `--set` values that hold in every run of it."""

    search: Search
    text: str  # as given
    recipe: Path
    overrides: tuple[str, ...]

    def trial(self, params: Params) -> LoadedRecipe:
        """Return the recipe of a trial; RecipeError names what these values make wrong."""
        timed = any(name.startswith(_TIMED) for bounds in self.search.sizes.values() for name in bounds)
        only = [*_set(self.search.trial), *_TRIAL, *([] if timed else ["benchmark=null"])]
        return load_recipe(self.recipe, [*self.overrides, *only, *_set(params)])

    def size(self, name: str, params: Params) -> LoadedRecipe:
        """Return the recipe of the model called `name`, with these values: whole, and held to its bounds."""
        own = [*_set(params), *_set({"title": f"{self.search.title}: {name}"})]
        loaded = load_recipe(self.recipe, [*self.overrides, *own])
        own += _set({"require": {**loaded.recipe.require, **self.search.sizes[name]}})
        if loaded.recipe.publish is not None:
            own += _set({"publish.repo_id": f"{loaded.recipe.publish.repo_id}-{name}"})
        return load_recipe(self.recipe, [*self.overrides, *own])

    @property
    def hash(self) -> str:
        """SHA-256 of what decides what a trial measures; the number of trials may grow, and sizes be added."""
        search = self.search.model_dump(mode="json")
        timed = "benchmark" if self.trial(self.first).recipe.benchmark else None
        return digest({"space": search["space"], "trial": self.trial(self.first).hash, "timed": timed})

    @property
    def first(self) -> Params:
        """Of every list the first value, of every range the lowest."""
        return {key: ends(values)[0] for key, values in self.search.space.items()}


def ends(values: Values) -> Sequence[Any]:
    """Return the values that stand for all when they are checked: each of a list, the two ends of a range."""
    return values.ends if isinstance(values, Range) else values


def load_search(path: str | Path, overrides: Sequence[str] = (), trials: int | None = None) -> LoadedSearch:
    """Read a search, and check every value of its space in the recipe; `overrides` are of the recipe.

    Raises RecipeError that names the key.
    """
    path = Path(path)
    text, values = read_yaml(path)
    if trials is not None:
        values["trials"] = trials
    try:
        search = Search.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(error, Search)) from error
    found = LoadedSearch(search, text, path.parent / search.recipe, tuple(overrides))
    load_recipe(found.recipe, overrides)  # its own mistakes first
    _check_space(found)
    return found


def _check_space(search: LoadedSearch) -> None:
    """Try every value alone, beside the first ones of the other keys: a mistake is told before anything runs."""
    for key, values in search.search.space.items():
        for value in ends(values):
            params = {**search.first, key: value}
            try:
                search.trial(params)
                for name in search.search.sizes:
                    search.size(name, params)
            except RecipeError as error:
                raise RecipeError(f"with {key}: {value!r} of `space`: {error}") from error


def _set(values: Mapping[str, Any]) -> list[str]:
    """Return values by dotted key as `--set` items; JSON is YAML, but for its escapes of what lies beyond 16 bits."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
