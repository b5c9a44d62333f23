"""The workloads a run is timed on: the recipe's, or the task's where it names none."""

from __future__ import annotations

from typing import Any

from ..core.errors import RecipeError
from ..measure.workloads import Shape
from ..recipe.schema import Recipe
from ..train.tasks import Task


def shapes_of(recipe: Recipe, task: Task, processor: Any, limit: int) -> list[Shape]:
    """Return the shapes to time; RecipeError for one of more than the `limit` tokens the compressed model takes."""
    default = task.shapes(processor)
    given = recipe.benchmark.shapes if recipe.benchmark else None
    for index, shape in enumerate(given or ()):
        if limit and (shape.length or 0) > limit:
            raise RecipeError(
                f"benchmark.shapes.{index}.length: the compressed model takes {limit} tokens (got {shape.length})."
            )
    return [_shape(s, default[0].image_size, limit) for s in given or default]


def _shape(shape: Any, image_size: int | None, limit: int) -> Shape:
    length = min(shape.length, limit) if shape.length and limit else shape.length
    return Shape(shape.batch, length, shape.image_size or (None if length else image_size))
