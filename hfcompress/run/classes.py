"""Which classes the heads of a recipe have: that to be trained, and those of teacher and student beside the model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig

from ..core.errors import RecipeError
from ..core.pretrained import from_pretrained
from ..recipe.schema import Recipe
from ..train.data import Splits
from ..train.tasks import Task
from ..train.tasks.label_map import LabelMap, class_order, match, new_classes, same_classes
from ..train.tasks.labels import plain, show, unnamed

_SHOWN = 4


def classes_to_train(recipe: Recipe, task: Task, splits: Splits) -> LabelMap | None:
    """Return the classes of the head to be trained: those of the checkpoint if it has just these, else the data's."""
    labels, given = splits.labels, recipe.data.labels
    if labels is None:
        return None
    if isinstance(recipe.model, str) and not given:
        config = _config(recipe.model, recipe.revision)
        if config is not None and same_classes(labels, task.classes(config)):
            return match(labels, task.classes(config))
    return new_classes(labels, given)


def require_same_classes(theirs: Sequence[str], ours: Sequence[str], splits: Splits) -> list[str]:
    """Raise RecipeError where a teacher answers with other classes; return what is to be known where names say none."""
    if list(theirs) == list(ours):
        return []
    _require_order("teacher", theirs, ours, splits.label_map or ours)
    if len(theirs) != len(ours):
        raise RecipeError(
            f"teacher: it has {len(theirs)} classes ({show(theirs)}), the model {len(ours)} ({show(ours)})."
        )
    if unnamed(theirs) or unnamed(ours):
        return ["The classes of teacher or model have no names: they are taken to stand in the same order."]
    known = splits.label_map.by_name() if splits.label_map else {plain(name): i for i, name in enumerate(ours)}
    if strange := [name for name in theirs if plain(name) not in known]:
        raise RecipeError(
            f"teacher: its classes {show(strange)} are none of the model's ({show(ours)}), so nothing says which is "
            "which: give both the same names under id2label in their config.json, once you know."
        )
    return []


def require_same_order(whose: str, source: str, task: Task, ours: Any) -> None:
    """Raise RecipeError where a checkpoint's head has classes of the names of config `ours` in another order."""
    if (config := _config(source)) is not None:
        _require_order(whose, task.classes(config), task.classes(ours), task.classes(ours))


def _require_order(whose: str, theirs: Sequence[str], ours: Sequence[str], known: LabelMap | Sequence[str]) -> None:
    """Raise RecipeError that shows both orders where classes of the same names stand in another one."""
    if unnamed(theirs) or unnamed(ours):
        return
    if moved := list(class_order(theirs, known)):
        raise RecipeError(
            f"{whose}: its classes stand in another order than the model's ({'; '.join(moved[:_SHOWN])}): "
            f"{show(theirs)} and {show(ours)}. Train one of them with the other's order."
        )


def _config(source: str, revision: str | None = None) -> Any:
    """Return the config of a checkpoint; None where it cannot be read, which is said better where the model is."""
    try:
        return from_pretrained(AutoConfig, source, revision=revision)
    except (OSError, ValueError):
        return None
