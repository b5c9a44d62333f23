"""Which layer of the teacher each layer of the student learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from .errors import LifecycleError

Pairs = list[tuple[int, int]]  # (layer of the student, layer of the teacher), both from 0
FixedMap = Literal["uniform", "last"] | list[int] | dict[int, int]
LAYERS_HELP = (
    "Which layers meet. uniform: every layer of the student the one at the same share of the teacher's depth; last: "
    "the last two; a list: the teacher's layer for each of the student's, in order; a mapping: student's layer to "
    "teacher's. Layers count from 0, and from the end with -1."
)


def layer_pairs(layers: FixedMap, student: int, teacher: int, where: str) -> Pairs:
    """Return the pairs of layers that meet, of models with this many; LifecycleError for a layer there is not."""
    if layers == "uniform":
        return [(i, max(0, round((i + 1) * teacher / student) - 1)) for i in range(student)]
    if layers == "last":
        return [(student - 1, teacher - 1)]
    named = _named(layers, student, where)
    return [(_index(s, student, "student", where), _index(t, teacher, "teacher", where)) for s, t in named]


def student_layers(layers: FixedMap | Literal["nearest"], student: int) -> set[int]:
    """Return which of the student's layers, of so many, meet one of the teacher's."""
    if layers == "last":
        return {student - 1}
    return {s % student for s in layers} if isinstance(layers, Mapping) else set(range(student))


def _named(layers: FixedMap, student: int, where: str) -> Sequence[tuple[int, int]]:
    if isinstance(layers, Mapping):
        return sorted(layers.items())
    if len(layers) != student:
        raise LifecycleError(
            f"{where}: the list names {len(layers)} layers of the teacher, the student has {student}; give one for "
            "each, or a mapping such as {0: 1}"
        )
    return list(enumerate(int(layer) for layer in layers))


def _index(layer: int, count: int, whose: str, where: str) -> int:
    if not -count <= layer < count:
        raise LifecycleError(f"{where}: the {whose} has no layer {layer}; its layers are 0 to {count - 1}")
    return layer % count
