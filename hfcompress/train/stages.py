"""From what a user may call a recipe (file, Recipe, list of method configs) to stages of methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import StrictModel
from ..core.errors import RecipeError
from ..core.method import Method
from ..core.registry import create, name_of
from ..recipe.load import load_recipe
from ..recipe.schema import Recipe, Stage

RecipeLike = Recipe | str | Path | Sequence[StrictModel] | StrictModel


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


def stages_of(recipe: RecipeLike) -> list[StageMethods]:
    """Return the stages of a Recipe, a recipe file, or method configs that act together in one stage."""
    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe).recipe
    if isinstance(recipe, Recipe):
        return [stage_methods(stage, f"stages.{i}") for i, stage in enumerate(recipe.stages)]
    configs = [recipe] if isinstance(recipe, StrictModel) else list(recipe)
    if not configs:
        raise RecipeError("the recipe is empty: give at least one method config")
    built = [create(name_of(c), c.model_dump()) for c in configs]
    names = [m.info.name for m in built]
    if len(set(names)) < len(names):
        raise RecipeError(f"a stage takes each method once, got {', '.join(names)}")
    return [StageMethods("+".join(names), built, None)]


def stage_methods(stage: Stage, where: str) -> StageMethods:
    """Build the methods of one stage of a recipe."""
    built = [create(name, settings, f"{where}.methods") for name, settings in stage.methods.items()]
    return StageMethods(stage.title, built, stage.train)
