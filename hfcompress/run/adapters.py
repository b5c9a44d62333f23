"""Which of the models that a recipe names are adapters of peft, found before anything is read or done."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint.adapters import Adapter, find_adapter, refusal
from ..core.errors import CheckpointError, RecipeError
from ..recipe.schema import Recipe


def adapters_of(recipe: Recipe) -> dict[str, Adapter]:
    """Return the adapters by the recipe's key.

    Raises CheckpointError for one that the recipe does not want merged, RecipeError where it does and there is none.
    """
    named = {key: getattr(recipe, key) for key in ("model", "teacher", "student")}
    revisions = {"model": recipe.revision}
    found = {key: find_adapter(name, revisions.get(key)) for key, name in named.items() if isinstance(name, str)}
    adapters = {key: adapter for key, adapter in found.items() if adapter is not None}
    if recipe.merge_adapters and not adapters:
        raise RecipeError("merge_adapters: none of model, teacher and student is an adapter; leave it out.")
    if not recipe.merge_adapters:
        for key, adapter in adapters.items():
            raise CheckpointError(f"{key}: {refusal(adapter)}")
    return adapters


def processor_place(recipe: Recipe, adapters: Mapping[str, Adapter]) -> tuple[str, str | None]:
    """Return where the model's tokenizer or image processor lies, and its revision there."""
    if recipe.processor is not None or "model" not in adapters:
        return recipe.processor or str(recipe.model), recipe.revision
    place = adapters["model"].processor
    return place, recipe.revision if place == recipe.model else adapters["model"].base_revision
