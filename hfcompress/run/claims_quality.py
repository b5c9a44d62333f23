"""What a result claims of the metric and of how two models differ, from predictions made again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from transformers import AutoConfig

from ..core.errors import HFCompressError
from ..core.pretrained import from_pretrained
from ..core.scratch import scratch_folder
from ..export.runtime import Source
from ..measure.quality import EvaluationSet, difference, predict, quality
from ..measure.result import ClassRow, Difference, Quality, Result
from ..publish.rows import engine_name, metric, signed
from ..train.tasks import get_task
from .claimed import read_again
from .claims import COMPRESSED, NOT_FOUND, ORIGINAL, Check, Place, first_line, missing, of, unread
from .folder import RunFolder
from .trivial import trivial_score

SAME = 1e-3  # a metric that is no share may differ by so much of itself, between machines
FLIPS = 3  # examples by which the end of an interval may move when one falls to the other side; of another metric,
_WIDTH, _ROUNDED = 0.1, 1e-5  # by so much of the interval's width, and of the metric
_KL = 0.05  # of itself, and so many nats: kernels of other machines round otherwise
_ECE = 2e-3  # and two examples: one may cross a bin's edge
_SURE = 1e-9
_UNTOLD = "not told"
_OF = ("metric", "examples", "resamples", "level", "counted", "higher_is_better")  # what a number is of
_STATISTICS = {"mcnemar": "its McNemar test", "divergence": "KL divergence", "classes": "what each class paid"}


@dataclass(frozen=True)
class Unknown:
    """Why it is not known what a model puts out; False: because it can't be run, which speaks against the claim."""

    why: str
    holds: bool | None = None


Kept = np.ndarray | Unknown


def quality_claims(at: Place, overrides: Sequence[str]) -> list[Check]:
    """Let both models, and the control, predict again, and compute every statistic anew."""
    if not at.result.compressed.quality:
        return []
    with scratch_folder() as scratch:
        try:
            data = _evaluation(at, RunFolder(Path(scratch)), overrides)
        except HFCompressError as error:
            return unread(list(_said(at.result)), first_line(error))
        result = at.result
        names = [row.engine for row in (*result.compressed.quality, *result.baseline.quality)]
        names += [row.engine for row in result.difference]
        found = [line for name in dict.fromkeys(names) for line in _in_engine(at, data, name)]
        return [*found, *_control(at, data), *_trivial(at, data)]


def _evaluation(at: Place, scratch: RunFolder, overrides: Sequence[str]) -> EvaluationSet:
    """Return the run's evaluation split, or, read again into `scratch`, that of its recipe."""
    folder, result = at.folder, at.result
    if not (folder.batches.is_file() and folder.labels.is_file()):
        read_again(result, at.model, overrides, folder := scratch, original=at.original)
    task, wanted = get_task(result.task), next(iter(result.compressed.quality))
    return EvaluationSet(
        batches=folder.batches,
        labels=load_file(folder.labels)["labels"],
        metric=wanted.metric,
        score=task.metric(wanted.metric),
        reduction=task.reduction,
        decode=task.predictions,
        answers=task.answers,
        counted=task.counted,
        classes=task.classes(from_pretrained(AutoConfig, at.model)),
        own={ORIGINAL: folder.baseline_batches} if folder.baseline_batches.is_file() else {},
    )


def _said(result: Result) -> Iterator[tuple[str, str]]:
    for label, model in ((COMPRESSED, result.compressed), (ORIGINAL, result.baseline)):
        for row in model.quality:
            yield f"{of(label)}{row.metric}, {engine_name(row.engine)}", metric(result, row.value)
    for line in result.difference:
        yield _interval_name(line), _interval(result, line)


def _in_engine(at: Place, data: EvaluationSet, name: str) -> Iterator[Check]:
    sources = at.sources()
    kept: dict[str, Kept] = {label: _predicted(at, data, label, sources.get(label), name) for label in at.models}
    for label, model in at.models.items():
        wanted = model.quality_in(name)
        if wanted is not None:
            yield from _quality(at, data, label, wanted, kept[label])
    row = next((d for d in at.result.difference if d.engine == name), None)
    if row is None:
        return
    before, after = kept[ORIGINAL], kept[COMPRESSED]
    if isinstance(before, Unknown) or isinstance(after, Unknown):
        why = next(one.why for one in (after, before) if isinstance(one, Unknown))
        yield Check(_interval_name(row), _interval(at.result, row), why, None)
        return
    scale = max(abs(quality(name, one, data).value) for one in (before, after))
    yield from _difference(at, row, difference(name, before, after, data, seed=at.result.seed), scale)


def _predicted(at: Place, data: EvaluationSet, label: str, source: Source | None, name: str) -> Kept:
    if source is None:
        return Unknown(NOT_FOUND)
    if why := missing(name, source):
        return Unknown(why)
    batches = data.batches_for(label)
    try:
        return predict(source, name, batches, at.result.auto_class, at.threads, reduction=data.reduction)
    except HFCompressError as error:
        return Unknown(first_line(error), holds=False if label == COMPRESSED else None)


def _quality(at: Place, data: EvaluationSet, label: str, wanted: Quality, kept: Kept) -> Iterator[Check]:
    name, claimed = f"{of(label)}{wanted.metric}, {engine_name(wanted.engine)}", metric(at.result, wanted.value)
    if isinstance(kept, Unknown):
        yield Check(name, claimed, kept.why, kept.holds)
        return
    found = quality(wanted.engine, kept, data)
    one = (1 / found.examples if abs(found.value) <= 1 else SAME * abs(found.value)) + _SURE
    held, others = abs(found.value - wanted.value) <= one, _others(wanted, found)
    yield Check(name, claimed, ", ".join([metric(at.result, found.value), *others]), held and not others)
    name = f"{of(label)}calibration error, {engine_name(wanted.engine)}"
    told, now = wanted.calibration_error, found.calibration_error
    if told is not None:
        held = abs((now or 0.0) - told) <= _ECE + 2 / found.examples
        yield Check(name, f"{told:.2%}", f"{now or 0.0:.2%}", held)
    elif at.complete and now is not None:
        yield Check(name, _UNTOLD, f"{now:.2%}", False)


def _others(told: Quality | Difference, found: Quality | Difference) -> list[str]:
    """Return what a number is of, in words, where that is something else than is claimed."""
    names = [name for name in _OF if hasattr(found, name) and getattr(told, name) != getattr(found, name)]
    return [f"{name.replace('_', ' ')} {getattr(found, name)}" for name in names]


def _interval_name(row: Difference) -> str:
    return f"difference of {row.metric} and its interval, {engine_name(row.engine)}"


def _interval(result: Result, row: Difference) -> str:
    low, high = (signed(result, bound) for bound in (row.low, row.high))
    return f"{signed(result, row.value)} ({low} to {high})"


def _difference(at: Place, row: Difference, found: Difference, scale: float) -> Iterator[Check]:
    """Compare every statistic of two models, whose metrics are of size `scale`, with what they predict now."""
    result, where, n = at.result, engine_name(row.engine), found.examples
    held = _interval_holds(row, found, scale)
    yield Check(_interval_name(row), _interval(result, row), _interval(result, found), held)
    others, words = _others(row, found), f"{row.examples} examples, {row.resamples} resamples, {row.level:.0%}"
    yield Check(f"what that interval is of, {where}", words, ", ".join(others) or words, not others)
    answers, now = row.agreement, found.agreement
    yield Check(f"agreement, {where}", f"{answers:.1%}", f"{now:.1%}", abs(answers - now) <= 1 / n + _SURE)
    if row.divergence is not None:
        now = found.divergence or 0.0
        held = abs(row.divergence - now) <= _KL * now + 1e-4
        yield Check(f"KL divergence, {where}", f"{row.divergence:.4f}", f"{now:.4f}", held)
    if row.mcnemar is not None:
        told, seen = ((m.lost, m.gained) if m else (-2, -2) for m in (row.mcnemar, found.mcnemar))
        held = all(abs(a - b) <= 1 for a, b in zip(told, seen, strict=True))
        yield Check(
            f"right in one model only, {where}", " and ".join(map(str, told)), " and ".join(map(str, seen)), held
        )
    if row.classes:
        yield _classes(row.classes, found.classes, where)
    untold = [
        words
        for name, words in _STATISTICS.items()
        if getattr(row, name) in (None, []) and getattr(found, name) not in (None, [])
    ]
    if at.complete and untold:
        yield Check(f"statistics of a classifier, {where}", _UNTOLD, ", ".join(untold), False)


def _interval_holds(row: Difference, found: Difference, scale: float) -> bool:
    """Return whether a difference and its interval are those found, and tell the models apart where those do.

    An end may cross zero by no more than one example makes, or of a metric that is no share the rounding of machines.
    """
    share = scale <= 1
    one = (1 / found.examples if share else _ROUNDED * scale) + _SURE
    wide = _WIDTH * (found.high - found.low) + one
    held = abs(row.value - found.value) <= (2 * one if share else wide)
    for sign, told, now in ((1, row.low, found.low), (-1, row.high, found.high)):
        crossed = (sign * told > 0) != (sign * now > 0)
        held &= abs(told - now) <= (one if crossed else FLIPS * one if share else wide)
    return held


def _classes(told: Sequence[ClassRow], seen: Sequence[ClassRow], where: str) -> Check:
    others = [
        f"{one.name} {one.before} → {one.after}" for one, now in zip(told, seen, strict=False) if not _near(one, now)
    ]
    held = not others and len(told) == len(seen)
    words = f"{len(told)} classes"
    return Check(f"right by class, {where}", words, words if held else f"not so: {', '.join(others[:3])}", held)


def _near(told: ClassRow, seen: ClassRow) -> bool:
    counts = abs(told.before - seen.before) <= 1 and abs(told.after - seen.after) <= 1
    return (told.name, told.examples) == (seen.name, seen.examples) and counts


def _trivial(at: Place, data: EvaluationSet) -> list[Check]:
    told, config = at.result.trivial, from_pretrained(AutoConfig, at.model)
    if told is None:
        return []
    found = trivial_score(get_task(at.result.task), data.score, data.labels, config)
    held = found is not None and abs(found - told) <= SAME * max(1.0, abs(told))
    seen = "none" if found is None else metric(at.result, found)
    return [Check(f"a guess that looks at no example: {data.metric}", metric(at.result, told), seen, held)]


def _control(at: Place, data: EvaluationSet) -> list[Check]:
    wanted, folder = at.result.control, at.folder.control
    if wanted is None:
        return []
    name, claimed = f"control: {wanted.metric}, {engine_name(wanted.engine)}", metric(at.result, wanted.value)
    if not (folder / "config.json").is_file():
        return [Check(name, claimed, "the control's folder is not at hand", None)]
    source = Source(str(folder), dtype=at.result.dtype)
    kept = _predicted(at, data, ORIGINAL, source, wanted.engine)
    return list(_quality(at, data, "control", wanted, kept))
