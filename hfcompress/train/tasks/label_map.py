"""Which class of a model each label of a data set is: by name, by what the recipe says, or by number, not by order."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from ...core.errors import DataError, nearest
from .labels import DataLabels, Names, plain, show, unnamed, whole

KEY = "data.labels"
_SHOWN, _SUGGESTED = 8, 12
_HEAD = "Or use a model with these labels, or add 'finetune' to train a new head."


@dataclass(frozen=True)
class LabelMap:
    """The class of a model, by id, that each label of the data is, by the data's own number."""

    classes: tuple[str, ...]
    ids: Mapping[int, int]
    labels: DataLabels

    def apply(self, numbers: np.ndarray) -> np.ndarray:
        """Return the ids of classes (N,) of labels (N,) in the data's numbers."""
        table = {number: self.ids[number] for number in np.unique(numbers).tolist()}
        found, places = np.unique(numbers, return_inverse=True)
        return np.asarray([table[number] for number in found.tolist()], dtype=np.int64)[places]

    @property
    def is_identity(self) -> bool:
        """Whether the data numbers its labels as the model does its classes."""
        return all(number == index for number, index in self.ids.items())

    def by_name(self) -> dict[str, int]:
        """Return the id of each class by its own name and by what the data calls it."""
        found = {plain(self.labels.called(number)): index for number, index in self.ids.items()}
        return {**found, **{plain(name): index for index, name in enumerate(self.classes)}}

    def __str__(self) -> str:
        pairs = [
            f"{name} → {self.classes[index]} ({index})" if plain(name) != plain(self.classes[index]) else
            f"{self.classes[index]} ({index})"
            for number, index in self.ids.items() if (name := self.labels.called(number)) is not None
        ]  # fmt: skip
        more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
        return ", ".join(pairs[:_SHOWN]) + more

    def lines(self) -> list[str]:
        """Return what is to be known of the labels, in words."""
        lines = [f"Labels of the data, and the model's class (its number): {self}."]
        lines += [f"Labels {show(ways)} are taken for one." for ways in self.labels.merged]
        for what, numbers in (("no example", self.labels.present), ("no example to train on", self.labels.in_training)):
            used = {self.ids[number] for number in numbers}
            missing = [name for index, name in enumerate(self.classes) if index not in used]
            if missing:
                lines.append(f"Of {len(self.classes)} classes these have {what}: {show(missing)}.")
                break
        return lines


def match(labels: DataLabels, classes: Sequence[str], given: Mapping[str, str | int] | None = None) -> LabelMap:
    """Return the class of a trained head that each label is; DataError with the lines to write where that is not known.

    `given` is what the recipe says. The rest is found by name, whatever the order, and labels that are only numbers
    are the model's.
    """
    said = _said(labels, classes, given or {})
    open_ = [number for number in labels.present if number not in said]
    _refuse_merged(labels, classes)
    found = _by_name(labels, classes, open_, said) if labels.named else _by_number(labels, classes, open_, said)
    return LabelMap(tuple(classes), dict(sorted({**found, **said}.items())), labels)


def new_classes(labels: DataLabels, given: Mapping[str, str | int] | None = None) -> LabelMap:
    """Return the classes that a new head gets: the data's own, in its order, under the names that the recipe gives."""
    given = given or {}
    _refuse_unseen(labels)
    if given and all(isinstance(value, int) for value in given.values()):
        return _new_by_number(labels, given)
    said = {_number(labels, key): str(value) for key, value in given.items()}
    numbers = labels.all
    if labels.names is None and not said and numbers == list(range(len(numbers))):
        return LabelMap(tuple(f"LABEL_{number}" for number in numbers), {n: n for n in numbers}, labels)
    named = {number: said.get(number, labels.called(number)) for number in numbers}
    classes = list(dict.fromkeys(named.values()))
    return LabelMap(tuple(classes), {number: classes.index(name) for number, name in named.items()}, labels)


def same_classes(labels: DataLabels, classes: Sequence[str]) -> bool:
    """Say whether a head that is there already is for just these labels, by name."""
    if not labels.named or unnamed(classes) or labels.names is None:
        return False
    return sorted(map(plain, labels.names)) == sorted(map(plain, classes))


def _new_by_number(labels: DataLabels, given: Mapping[str, str | int]) -> LabelMap:
    ids = {_number(labels, key): int(value) for key, value in given.items()}
    missing = [labels.called(number) for number in labels.present if number not in ids]
    count = len(set(ids.values()))
    if missing or set(ids.values()) != set(range(count)):
        reason = f"say it for {show(missing)} too" if missing else "number the classes 0, 1, … without a gap"
        raise DataError(f"{KEY}: classes of a new head by number: {reason}, or give names.")
    return LabelMap(tuple(f"LABEL_{index}" for index in range(count)), dict(sorted(ids.items())), labels)


def _refuse_unseen(labels: DataLabels) -> None:
    """Raise DataError for names to measure on that training never shows: a new head cannot know them."""
    unseen = [labels.called(n) for n in labels.present if n not in labels.in_training]
    if unseen and labels.named and not labels.numbered:
        known = [labels.called(number) for number in labels.in_training]
        places = "; ".join(
            f"{name!r} in {labels.where(n)}" for n in labels.present if (name := labels.called(n)) in unseen
        )
        raise DataError(
            f"split 'evaluate': labels {show(unseen)} do not occur among the labels {show(known)} that are trained on "
            f"({places}). Remove these rows, or train on examples of them too."
        )


def _said(labels: DataLabels, classes: Sequence[str], given: Mapping[str, str | int]) -> dict[int, int]:
    return {_number(labels, key): _class(classes, value, key) for key, value in given.items()}


def _number(labels: DataLabels, key: str) -> int:
    number = labels.find(key)
    if number is None:
        known = [labels.called(number) for number in labels.all]
        raise DataError(f"{KEY}: the data has no label {key!r}.{nearest(key, known)}")
    return number


def _class(classes: Sequence[str], value: str | int, key: str) -> int:
    index = Names(classes).find(value) if isinstance(value, str) else value
    index = whole(str(value)) if index is None else index
    if index is None or not 0 <= index < len(classes):
        raise DataError(f"{KEY}.{key}: the model has no class {value!r}.{nearest(str(value), classes)}")
    return index


def _refuse_merged(labels: DataLabels, classes: Sequence[str]) -> None:
    """Raise DataError where labels that were taken for one are classes of their own."""
    for ways in labels.merged:
        if len(set(ways) & set(classes)) > 1:
            raise DataError(
                f"{KEY}: labels {show(ways)} differ in case alone, and the model has a class for each: say so with "
                f"\n{_yaml({name: name for name in ways})}"
            )


def _by_name(
    labels: DataLabels, classes: Sequence[str], open_: Sequence[int], said: Mapping[int, int]
) -> dict[int, int]:
    names = Names(classes)
    found = {number: names.find(labels.called(number)) for number in labels.all if number not in said}
    missing = [number for number in open_ if found[number] is None]
    if not missing:
        return {number: index for number, index in found.items() if index is not None}
    if labels.numbered and unnamed(classes) and not said and labels.names and len(labels.names) == len(classes):
        return {number: number for number in labels.all}  # whoever made the data gave them these numbers
    known = {number: index for number, index in found.items() if index is not None}
    raise DataError(_unmatched(labels, classes, missing, {**known, **said}))


def _unmatched(labels: DataLabels, classes: Sequence[str], missing: Sequence[int], said: Mapping[int, int]) -> str:
    """Return what to tell of labels that are called like no class: the lines to write where there is a class for each.

    `said` is what is known of the others.
    """
    unknown = [labels.called(number) for number in missing]
    why = "whose names say nothing" if unnamed(classes) else "which has no such classes"
    head = (
        f"{KEY}: the data has {len(labels.all)} labels ({show(map(labels.called, labels.all))}), the model "
        f"{len(classes)} ({show(classes)})"
    )
    if len(missing) > len(classes) - len(set(said.values())):
        return f"{head}. {_surplus(labels, missing)}"
    return (
        f"{head}, {why}: which class is {show(unknown)}? Say it, once you know "
        f"which is which, for example:\n{_suggested(labels, classes, missing, said)}\n{_HEAD}"
    )


def _surplus(labels: DataLabels, numbers: Sequence[int]) -> str:
    """Return what to tell of labels that the model has no classes for: how many rows have them, and what can be done.

    Which class of the model they might be is not guessed: with more labels than classes two would be one.
    """
    called = [labels.called(number) for number in numbers]
    places = "; ".join(f"{labels.called(number)!r} in {labels.where(number)}" for number in numbers[:_SHOWN])
    more = f"; and {len(numbers) - _SHOWN} more labels" if len(numbers) > _SHOWN else ""
    return (
        f"No class is left for {show(called)} ({places}{more}). Remove these rows from the data, or add 'finetune' to "
        f"train a new head for all {len(labels.all)} labels; only if a label means the same as a class of the model, "
        f"say so under {KEY}."
    )


def _by_number(
    labels: DataLabels, classes: Sequence[str], open_: Sequence[int], said: Mapping[int, int]
) -> dict[int, int]:
    if said:
        if open_:
            left = show(map(labels.called, open_))
            raise DataError(f"{KEY}: labels that are numbers are mapped all or none: say which class {left} is too.")
        return {}
    names = Names(classes)
    named = {number: index for number in open_ if (index := names.find(labels.called(number))) is not None}
    fits = all(0 <= number < len(classes) for number in open_)
    if len(named) == len(open_):
        if fits and any(number != index for number, index in named.items()) and not labels.truth:
            raise DataError(
                f"{KEY}: the labels are the numbers {show(map(labels.called, open_))}, and the model has classes of "
                f"these names in another order ({show(classes)}): say which is meant, for example:\n"
                f"{_yaml({labels.called(number): index for number, index in named.items()})}"
            )
        return named
    if fits:
        return {number: number for number in open_}
    raise DataError(_beyond(labels, classes, open_))


def _beyond(labels: DataLabels, classes: Sequence[str], numbers: Sequence[int]) -> str:
    own = f"the model has {len(classes)} classes, numbered 0 to {len(classes) - 1} ({show(classes)})"
    if len(numbers) > len(classes):
        beyond = [number for number in numbers if not 0 <= number < len(classes)]
        named = f"the data has {len(numbers)} labels ({show(map(labels.called, numbers))})"
        return f"{KEY}: {named}, {own}. {_surplus(labels, beyond)}"
    starts = numbers[0] == 1 and numbers[-1] == len(classes)
    what = f"start at 1 and go to {numbers[-1]}" if starts else f"are {show(map(str, numbers))}"
    return (
        f"{KEY}: the labels {what}, {own}: say which class each is, for example:\n"
        f"{_suggested(labels, classes, numbers, {})}\n{_HEAD}"
    )


def _suggested(labels: DataLabels, classes: Sequence[str], numbers: Sequence[int], said: Mapping[int, int]) -> str:
    """Return the lines of a recipe that map labels to classes: to the nearest names, else one after the other."""
    free = [name for index, name in enumerate(classes) if index not in said.values()]
    wanted = [labels.called(number) for number in numbers[:_SUGGESTED]]
    found: dict[str, str] = {}
    for name in wanted if labels.named else ():
        if close := difflib.get_close_matches(plain(name), [plain(one) for one in free], n=1):
            found[name] = next(one for one in free if plain(one) == close[0])
            free.remove(found[name])
    left = iter([*free, *classes, *[classes[-1]] * len(wanted)])
    pairs = {name: found[name] if name in found else next(left) for name in wanted}
    return _yaml(pairs) + ("  # and so on" if len(numbers) > _SUGGESTED else "")


def _yaml(pairs: Mapping[str, Any]) -> str:
    """Return `data.labels` as it stands in a recipe."""
    plain_keys = {whole(key) if whole(key) is not None else key: value for key, value in pairs.items()}
    text = yaml.safe_dump(plain_keys, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 20)
    return f"data:\n  labels: {text.strip()}"


def class_order(theirs: Sequence[str], ours: LabelMap | Sequence[str]) -> Iterator[str]:
    """Yield in words each class that stands at another place in one head than in another, as far as names tell."""
    known = ours.by_name() if isinstance(ours, LabelMap) else {plain(name): index for index, name in enumerate(ours)}
    for index, name in enumerate(theirs):
        place = known.get(plain(name))
        if place is not None and place != index:
            yield f"{name!r} is {index} and {place}"
