"""What follows from a result alone: the card's text, and the numbers that are made of other numbers of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import zip_longest

from ..core.errors import HFCompressError
from ..measure.findings import findings
from ..measure.latency import speedups
from ..measure.require import check
from ..measure.result import Difference, Result, Speedup
from ..measure.statistics import mcnemar_p
from ..publish.card import LOCAL, figures_beside, render_card
from ..publish.code import libraries_beside
from ..publish.examples import GRID, said_of
from ..publish.rows import engine_name, ratio, shape_name, signed
from .claims import COMPRESSED, ORIGINAL, Check, Place, first_line

TEXT = "the card's text is that of its result"
EVALUATED = "the metric in every engine that was timed"
_LOCATION, _REVISION = (
    re.compile(rf'^{name} = ("(?:[^"\\]|\\.)*")$', re.MULTILINE) for name in ("location", "revision")
)
_CAPTION = re.compile(rf"\]\({re.escape(GRID)}\)\n\n(.+)\n")
_CLOSE = 1e-6  # of a number that is computed from others
_SHOWN = 60  # letters of a line that differs


def text_claims(at: Place) -> list[Check]:
    """Render the card from the result and compare it with the one that lies there; then see whether numbers agree."""
    return [_text(at), *_follows(at.result)]


def _text(at: Place) -> Check:
    path = at.model / "README.md"
    if not path.is_file():
        return Check(TEXT, path.name, "missing", False)
    shown = path.read_text(encoding="utf-8")
    place = _LOCATION.search(shown)
    location, revision = json.loads(place[1]) if place else LOCAL, _REVISION.search(shown)
    told = said_of(at.folder.path)
    caption = _CAPTION.search(shown) if told is None else None  # a push leaves the picture but not what it was made of
    try:
        wanted = render_card(
            at.result,
            *figures_beside(at.result, at.model),
            repo_id=None if location == LOCAL else location,
            revision=json.loads(revision[1]) if revision else None,
            libraries=libraries_beside(at.model),
            examples=caption[1] if caption else told,
        )
    except (HFCompressError, SyntaxError) as error:
        return Check(TEXT, path.name, first_line(error), False)
    return Check(TEXT, path.name, _difference(shown, wanted) or "the same", shown == wanted)


def _difference(shown: str, wanted: str) -> str:
    for number, (is_, should) in enumerate(zip_longest(shown.splitlines(), wanted.splitlines(), fillvalue=""), 1):
        if is_ != should:
            start = max(0, _parting(is_, should) - _SHOWN // 2)
            return f"line {number} differs: …{is_[start : start + _SHOWN]}…"
    return "" if shown == wanted else "the end of the last line differs"


def _parting(one: str, other: str) -> int:
    """Return the first place at which two lines differ."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _follows(result: Result) -> Iterator[Check]:
    """Yield whether each kind of number that follows from others does."""
    yield _ratios(result)
    yield _evaluated(result)
    yield _findings(result)
    for row in result.difference:
        yield _difference_of(result, row)
        if row.mcnemar is not None:
            wanted = mcnemar_p(row.mcnemar.lost, row.mcnemar.gained)
            name = f"p-value of its McNemar test, {engine_name(row.engine)}"
            yield Check(name, f"{row.mcnemar.p_value:.4g}", f"{wanted:.4g}", _close(row.mcnemar.p_value, wanted))
    if result.requirements:
        yield _requirements(result)


def _ratios(result: Result) -> Check:
    """Compare the ratios of times with the times they are made of."""
    name, told = "ratios of times are those of the times", f"{len(result.speedup)} ratios"
    follow = speedups(result.baseline.latency, result.compressed.latency)
    key: Callable[[Speedup], object] = lambda row: (row.workload, row.engine, row.baseline_engine)  # noqa: E731
    made = {key(row): row.ratio for row in follow}
    for row in result.speedup:
        wanted = made.pop(key(row), math.nan)
        if not _close(row.ratio, wanted):
            where = f"{shape_name(row)}, {engine_name(row.engine)}"
            return Check(name, told, f"{where}: {ratio(wanted)}, not {ratio(row.ratio)}", False)
    return Check(name, told, f"{len(made)} more" if made else told, not made)


def _evaluated(result: Result) -> Check:
    """Look for the metric, and for the difference, in every engine that was timed: who leaves one out hides it."""
    models = {ORIGINAL: result.baseline, COMPRESSED: result.compressed}
    lacking = [
        f"not of the {label}, {engine_name(row.engine)}"
        for label, model in models.items()
        for row in model.latency
        if model.quality_in(row.engine) is None
    ]
    timed = [dict.fromkeys(row.engine for row in model.latency) for model in models.values()]
    told = {row.engine for row in result.difference}
    lacking += [f"no difference, {engine_name(name)}" for name in timed[0] if name in timed[1] and name not in told]
    words = f"{len(timed[1])} engines"
    return Check(EVALUATED, words, lacking[0] if lacking else words, not lacking)


def _findings(result: Result) -> Check:
    """Compare what the card names as no saving, or as uncertain, with what the numbers say."""
    name = "what saved nothing is what its numbers say"
    told = result.findings
    wanted = findings(
        result.baseline, result.compressed, result.speedup, result.waiting, result.methods, result.trivial
    )
    unsaid, untrue = [x for x in wanted if x not in told], [x for x in told if x not in wanted]
    found = "the same"
    if unsaid or untrue:
        found = f"not said: {unsaid[0]}" if unsaid else f"not so: {untrue[0]}"
    return Check(name, f"{len(told)} findings", found, not (unsaid or untrue))


def _difference_of(result: Result, row: Difference) -> Check:
    name = f"difference of {row.metric} is that of the models, {engine_name(row.engine)}"
    before, after = (model.quality_in(row.engine) for model in (result.baseline, result.compressed))
    value = after.value - before.value if before and after else math.nan
    held = _close(row.value, value) and row.low <= row.high
    return Check(name, signed(result, row.value), signed(result, value), held)


def _requirements(result: Result) -> Check:
    name, told = "what `require` asked for was met", f"{sum(row.met for row in result.requirements)} met"
    try:
        again = check(result, {row.name: row.wanted for row in result.requirements})
    except HFCompressError as error:
        return Check(name, told, first_line(error), False)
    held = all(a.met == b.met and _close(a.measured, b.measured)
               for a, b in zip(again, result.requirements, strict=True))  # fmt: skip
    return Check(name, told, f"{sum(row.met for row in again)} met" + (", by other numbers" * (not held)), held)


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_CLOSE, abs_tol=1e-9)
