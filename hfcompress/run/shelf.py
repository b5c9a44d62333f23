"""Runs that lie side by side: what one has made that is the same for another is not made twice."""

from __future__ import annotations

from ..recipe.schema import Recipe
from ..recipe.shared import baseline_key, control_key
from .folder import RunFolder


class Shelf:
    """Where the fine-tuned models, the controls and what was computed of them lie."""

    def __init__(self) -> None:
        self._made: dict[str, RunFolder] = {}

    def keep(self, run: RunFolder, recipe: Recipe) -> None:
        """Remember what a run of this recipe has made; what is there already stays."""
        for key, _ in _parts(recipe):
            self._made.setdefault(key, run)

    def fill(self, run: RunFolder, recipe: Recipe) -> None:
        """Put into a run of this recipe what is there for it."""
        for key, part in _parts(recipe):
            if key in self._made:
                self._made[key].share(run, part)


def _parts(recipe: Recipe) -> list[tuple[str, str]]:
    control = control_key(recipe)
    return [(baseline_key(recipe), "baseline"), *([(control, "control")] if control else [])]
