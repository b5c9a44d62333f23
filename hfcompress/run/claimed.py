"""The evaluation split that a result speaks of, read again where the run's folder, which has it, is not at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig

from ..core.errors import RecipeError
from ..core.pretrained import from_pretrained
from ..measure.result import Result
from ..recipe.load import LoadedRecipe, load_recipe
from ..recipe.schema import Recipe
from ..recipe.yaml12 import parse_yaml
from ..train.data import load_data
from ..train.tasks import get_task
from .folder import RunFolder
from .verify import write_labels, write_split

_RECIPE = "the result's recipe"
_LOCAL = "data.path="  # what was said of it is only the last part of a path on another machine


def read_again(
    result: Result, model: Path, overrides: Sequence[str], folder: RunFolder, *, original: str | None = None
) -> None:
    """Store in `folder` the split the result was measured on, as the processor beside `model` reads it, and its labels.

    With `original`, also as the one beside that reads it. The split comes from where the result's recipe says, or
    `overrides` of that. Raises HFCompressError when it can't be read.
    """
    recipe = _recipe(result, overrides)
    task = get_task(result.task)
    splits = load_data(recipe.data, task, recipe.seed)
    given = recipe.data.model_copy(update={"image_size": None})  # the processor beside the model knows
    places = [(str(model), given, folder.batches)]
    if original is not None:
        places.insert(0, (original, recipe.data, folder.baseline_batches))
    for place, data, path in places:
        config = from_pretrained(AutoConfig, place)
        processor = task.load_processor(place, config, data)
        evaluate = splits.for_classes(task.classes(config), recipe.data).evaluate
        examples = task.for_evaluation(task.encode(evaluate, processor, data), processor, data)
        collate = task.collator(processor, data, recipe.seed)
        write_labels(folder, write_split(path, examples, collate, recipe.evaluate.batch_size))


def claimed_recipe(result: Result, overrides: Sequence[str], more: tuple[str, ...] = ()) -> Recipe:
    """Return the recipe of a result, with what was set on the command line about its data, its seed and `more`."""
    said = [item for item in result.overrides if item.startswith(("data.", "evaluate.", "seed=", *more))]
    kept = [item for item in said if not item.startswith(_LOCAL)]
    return recipe_of(result, [*kept, *overrides]).recipe


def recipe_of(result: Result, overrides: Sequence[str]) -> LoadedRecipe:
    """Return the recipe of a result with these values set; RecipeError where its text is none."""
    values = parse_yaml(result.recipe, _RECIPE)
    if not isinstance(values, dict):
        raise RecipeError(f"{_RECIPE} is not one: it has no 'model', 'task', 'data' and 'stages'")
    return load_recipe(values, overrides)


def _recipe(result: Result, overrides: Sequence[str]) -> Recipe:
    local = next((item for item in result.overrides if item.startswith(_LOCAL)), None)
    if local is not None and not any(item.startswith(("data.path", "data.dataset")) for item in overrides):
        raise RecipeError(f"it was measured on local files ({local}): name them with --set data.path=PATH")
    return claimed_recipe(result, overrides)
