"""What of one run another may take over: digests of all that decides the original and the dense control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.registry import create
from .load import digest, resolved
from .schema import Recipe

_ORIGINAL = ("model", "revision", "processor", "dtype", "task", "data", "finetune", "seed")


def baseline_key(recipe: Recipe) -> str:
    """Return the digest of what decides the model the stages start from, fine-tuned or as it is."""
    values = resolved(recipe)
    return digest({key: values[key] for key in _ORIGINAL})


def control_key(recipe: Recipe) -> str | None:
    """Return the digest of what decides the dense control: the baseline, and training without what compresses.

    None: there is no control.
    """
    training = [(stage.train, _in_control(stage.methods)) for stage in recipe.stages if stage.train is not None]
    if not training or not recipe.evaluate.control:
        return None
    teacher = recipe.teacher, recipe.model_dump(mode="json")["teacher_cache"]
    return digest({"from": baseline_key(recipe), "teacher": teacher, "training": training})


def _in_control(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found = {name: create(name, settings) for name, settings in methods.items()}
    return {n: m.config.model_dump(mode="json") for n, m in found.items() if m.info.in_control}
