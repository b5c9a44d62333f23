"""Which models a method meets after every change: one that reads text and one that reads images, each in its turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

LEAST = 10  # methods that every family meets


def rotated(subjects: Mapping[str, Iterable[str]], kinds: Iterable[Iterable[str]]) -> set[tuple[str, str]]:
    """Return pairs of subject and model; `subjects` names the models that each can be met on, `kinds` groups them.

    Of each kind a subject meets the model that fewest have met before it; then every model meets further subjects, in
    their order, until it has met `LEAST` or all.
    """
    usable = {name: [*models] for name, models in subjects.items()}
    pairs: set[tuple[str, str]] = set()
    met: Counter[str] = Counter()

    def meet(name: str, model: str) -> None:
        pairs.add((name, model))
        met[model] += 1

    groups = [[*models] for models in kinds]
    for models in groups:
        for name in usable:
            if left := [model for model in models if model in usable[name]]:
                meet(name, min(left, key=lambda model: met[model]))
    for model in (model for models in groups for model in models):
        for name in usable:
            if met[model] < LEAST and model in usable[name] and (name, model) not in pairs:
                meet(name, model)
    return pairs
