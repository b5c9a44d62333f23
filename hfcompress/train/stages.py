"""From what a user may call a recipe (file, Recipe, list of method configs) to stages of methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import StrictModel
from ..core.errors import LifecycleError, RecipeError
from ..core.method import Method
from ..core.registry import create, name_of
from ..recipe.load import load_recipe
from ..recipe.schema import Recipe, Stage

RecipeLike = Recipe | str | Path | Sequence[StrictModel] | StrictModel


_MAKES = {
    "student": "hand the smaller model over as the model, the other one as teacher",
    "finetune": "hand over a model that is trained on the data already",
}


@dataclass(frozen=True)
class StageMethods:
    """The methods of one stage, and its training arguments if it trains."""

    title: str
    methods: list[Method]
    train: dict[str, Any] | None

    @property
    def calibration_examples(self) -> int:
        """How many calibration examples the methods read; 0 when none reads any."""
        return max((m.calibration_examples for m in self.methods if m.needs.calibration), default=0)


def read_recipe(recipe: RecipeLike) -> Recipe | Sequence[StrictModel]:
    """Return a Recipe, read where it is a file, or the list of method configs.

    Raises LifecycleError for a recipe that makes another model than the one at hand, on which its stages would act.
    """
    if isinstance(recipe, StrictModel) and not isinstance(recipe, Recipe):
        return [recipe]
    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe).recipe
    for key, instead in _MAKES.items() if isinstance(recipe, Recipe) else ():
        if getattr(recipe, key) is not None:
            raise LifecycleError(
                f"the recipe's {key!r} is for `hfcompress run` alone: {instead}, and leave {key!r} out"
            )
    return recipe


def stages_of(recipe: RecipeLike) -> list[StageMethods]:
    """Return the stages of a Recipe, a recipe file, or method configs that act together in one stage."""
    recipe = read_recipe(recipe)
    if isinstance(recipe, Recipe):
        return [stage_methods(stage, f"stages.{i}") for i, stage in enumerate(recipe.stages)]
    if isinstance(recipe, type):
        raise RecipeError(f"{recipe.__name__} is a class of settings: call it, {recipe.__name__}(), to have some")
    if not recipe:
        raise RecipeError("the recipe is empty: give at least one method config")
    built = [create(name_of(c), c.model_dump()) for c in recipe]
    names = [m.info.name for m in built]
    if len(set(names)) < len(names):
        raise RecipeError(f"a stage takes each method once, got {', '.join(names)}")
    return [StageMethods("+".join(names), built, None)]


def stage_methods(stage: Stage, where: str) -> StageMethods:
    """Build the methods of one stage of a recipe."""
    built = [create(name, settings, f"{where}.methods") for name, settings in stage.methods.items()]
    return StageMethods(stage.title, built, stage.train)
