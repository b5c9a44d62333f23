"""The workloads a run is timed on: the recipe's, or the task's where it names none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.errors import RecipeError
from ..measure.workloads import Shape
from ..recipe.plan import Plan
from ..recipe.schema import Recipe
from ..recipe.shape import written_out
from ..train.tasks import Task


def shapes_of(recipe: Recipe, task: Task, processor: Any, plan: Plan) -> list[Shape]:
    """Return the shapes to time; RecipeError for one that the compressed model does not take.

    Where it reads images of another size than the model, each is timed on its own.
    """
    default = task.shapes(processor)
    images = default[0].length is None
    given = [written_out(one, images=images) for one in (recipe.benchmark and recipe.benchmark.shapes) or ()]
    limit, own = plan.max_length, plan.image_size != default[0].image_size
    for index, shape in enumerate(given):
        if (shape.length if images else shape.image_size) is not None:
            reads, wrong, right = ("images", "length", "image_size") if images else ("text", "image_size", "length")
            raise RecipeError(f"benchmark.shapes.{index}.{wrong}: the model reads {reads}: give {right!r} instead.")
        if limit and (shape.length or 0) > limit:
            raise RecipeError(
                f"benchmark.shapes.{index}.length: the compressed model takes {limit} tokens (got {shape.length})."
            )
        if own and shape.image_size:
            raise RecipeError(
                f"benchmark.shapes.{index}.image_size: the model reads {default[0].image_size} pixels per side, the "
                f"compressed one {plan.image_size}: leave it out, then each is timed on images of its own size."
            )
    pixels = None if own else default[0].image_size
    wanted: Sequence[Any] = given or [Shape(s.batch, s.length) for s in default]
    return [_shape(shape, pixels, limit) for shape in wanted]


def _shape(shape: Any, image_size: int | None, limit: int) -> Shape:
    length = min(shape.length, limit) if shape.length and limit else shape.length
    return Shape(shape.batch, length, shape.image_size or (None if length else image_size))
