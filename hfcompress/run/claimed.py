"""The evaluation split that a result speaks of, read again where the run's folder, which has it, is not at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig

from ..core.errors import RecipeError
from ..measure.result import Result
from ..recipe.load import load_recipe
from ..recipe.schema import Recipe
from ..recipe.yaml12 import parse_yaml
from ..train.data import load_data
from ..train.tasks import get_task
from .folder import RunFolder
from .verify import write_labels, write_split

_LOCAL = "data.path="  # what was said of it is only the last part of a path on another machine


def read_again(result: Result, model: Path, overrides: Sequence[str], folder: RunFolder) -> None:
    """Store in `folder` the split the result was measured on, as the processor beside `model` reads it, and its labels.

    It comes from where the result's recipe says, or `overrides` of that. Raises HFCompressError when it can't be read.
    """
    recipe = _recipe(result, overrides)
    task = get_task(result.task)
    data = recipe.data.model_copy(update={"image_size": None})  # the processor knows
    processor = task.load_processor(str(model), AutoConfig.from_pretrained(model), data)
    evaluate = load_data(recipe.data, task, recipe.seed).evaluate
    examples = task.for_evaluation(task.encode(evaluate, processor, data), processor, data)
    collate = task.collator(processor, data, recipe.seed)
    write_labels(folder, write_split(folder.batches, examples, collate, recipe.evaluate.batch_size))


def _recipe(result: Result, overrides: Sequence[str]) -> Recipe:
    said = [item for item in result.overrides if item.startswith(("data.", "evaluate.", "seed="))]
    local = next((item for item in said if item.startswith(_LOCAL)), None)
    if local is not None and not any(item.startswith(("data.path", "data.dataset")) for item in overrides):
        raise RecipeError(f"it was measured on local files ({local}): name them with --set data.path=PATH")
    kept = [item for item in said if not item.startswith(_LOCAL)]
    recipe = parse_yaml(result.recipe, "the result's recipe")
    return load_recipe(recipe, [*kept, *overrides]).recipe
