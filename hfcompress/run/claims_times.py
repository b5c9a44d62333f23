"""What a result claims of times, memory and loading, measured again: only ratios of times carry over to a machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..measure.latency import measure_latency, speedups
from ..measure.opening import Opened, measure_opening
from ..measure.real import measure_real
from ..measure.result import BUSY, Speedup
from ..measure.workloads import Shape
from ..publish.rows import engine_name, ratio, shape_name, si
from .claims import COMPRESSED, NOT_FOUND, ORIGINAL, Check, Place, of, unread

BAND = 0.25  # a ratio of times holds if it is found within so much of itself
ROUNDS, SECONDS = 5, 2.0
MEMORY, LOAD = 1.5, 4.0  # times what is claimed, or one over: other libraries take other memory, other disks other time
_BUSY = "on a busy machine"


def time_claims(at: Place, band: float) -> list[Check]:
    """Time both models again in every engine that is at hand, and compare the ratios with those claimed."""
    claims = at.result.speedup
    if not claims:
        return []
    if at.original is None:
        said = [(_ratio_name(row), ratio(row.ratio)) for row in claims]
        return [*unread(said, NOT_FOUND), *unread(list(_opening_said(at)), NOT_FOUND)]
    again, busy = _timed_again(at, claims)
    return [*(_ratio(row, again, band, busy) for row in claims), *_opening(at, claims, busy)]


def _timed_again(at: Place, claims: list[Speedup]) -> tuple[list[Speedup], bool]:
    """Return the ratios as they are now, where they can be taken, and whether the machine was busy."""
    shapes, given = _shapes(claims), _given(at)
    given |= {"rounds": ROUNDS, "seconds": SECONDS}
    engines = list(dict.fromkeys(name for row in claims for name in (row.engine, row.baseline_engine)))
    models = at.sources(engines)
    engines = [name for name in engines if any(name not in (source.skips or {}) for source in models.values())]
    timed = []
    if engines and shapes:
        timed.append(measure_latency(models, engines, shapes, seed=at.result.seed, **given))
    if engines and any(row.examples is not None for row in claims) and at.folder.real.is_file():
        own = at.folder.baseline_real if at.folder.baseline_real.is_file() else at.folder.real
        timed.append(measure_real(models, engines, {ORIGINAL: own, COMPRESSED: at.folder.real}, **given))
    found = [row for one in timed for row in speedups(one.rows[ORIGINAL], one.rows[COMPRESSED])]
    return found, any(one.waiting > BUSY for one in timed)


def _given(at: Place) -> dict[str, Any]:
    return {"auto_class": at.result.auto_class, "threads": at.threads}


def _shapes(claims: list[Speedup]) -> list[Shape]:
    return list(dict.fromkeys(Shape(row.batch, row.length, row.image_size) for row in claims if row.examples is None))


def _ratio(claim: Speedup, again: list[Speedup], band: float, busy: bool) -> Check:
    """Compare one ratio; what a machine gives while others use it speaks neither for nor against the claim."""
    same = (row for row in again if row.model_copy(update={"ratio": claim.ratio}) == claim)
    found = next((row.ratio for row in same), None)
    if found is None:
        missing = "no files of this engine for both models" + " or no examples" * (claim.examples is not None)
        return Check(_ratio_name(claim), ratio(claim.ratio), missing, None)
    claimed = f"{ratio(claim.ratio)} ± {band:.0%}"
    if busy:
        return Check(_ratio_name(claim), claimed, f"{ratio(found)}, {_BUSY}", None, _BUSY)
    return Check(_ratio_name(claim), claimed, ratio(found), abs(found - claim.ratio) <= band * claim.ratio)


def _ratio_name(row: Speedup) -> str:
    against = "" if row.engine == row.baseline_engine else f" against {engine_name(row.baseline_engine)}"
    return f"times faster, {shape_name(row)}, {engine_name(row.engine)}{against}"


def _opening(at: Place, claims: list[Speedup], busy: bool) -> Iterator[Check]:
    """Compare the memory and the seconds that opening a model takes, within wide bands."""
    shapes, told = _shapes(claims), list(_opening_said(at))
    if not shapes or not told:
        return
    engines = list(dict.fromkeys(name for model in at.models.values() for name in model.peak_memory_bytes))
    found = measure_opening(at.sources(engines), engines, shapes, seed=at.result.seed, **_given(at))
    for label, model in at.models.items():
        for name, wanted in model.peak_memory_bytes.items():
            yield _memory(label, name, wanted, found)
        for name, seconds in model.load_seconds.items():
            yield _load(label, name, seconds, found, busy)


def _opening_said(at: Place) -> Iterator[tuple[str, str]]:
    for label, model in at.models.items():
        for name, wanted in model.peak_memory_bytes.items():
            yield _memory_name(label, name), si(wanted, "B")
        for name, seconds in model.load_seconds.items():
            yield _load_name(label, name), f"{seconds:.2f} s"


def _memory_name(label: str, name: str) -> str:
    return f"{of(label)}peak memory, {engine_name(name)}"


def _load_name(label: str, name: str) -> str:
    return f"{of(label)}from file to first output, {engine_name(name)}"


def _memory(label: str, name: str, wanted: int, found: Opened) -> Check:
    now = found.peak_bytes[label].get(name)
    if now is None:
        return Check(_memory_name(label, name), si(wanted, "B"), "no file of this engine", None)
    return Check(
        _memory_name(label, name), f"{si(wanted, 'B')} × or / {MEMORY:g}", si(now, "B"), _within(now, wanted, MEMORY)
    )


def _load(label: str, name: str, wanted: float, found: Opened, busy: bool) -> Check:
    now = found.load_seconds[label].get(name)
    if now is None:
        return Check(_load_name(label, name), f"{wanted:.2f} s", "no file of this engine", None)
    told = f"{wanted:.2f} s × or / {LOAD:g}"
    if busy:
        return Check(_load_name(label, name), told, f"{now:.2f} s, {_BUSY}", None, _BUSY)
    return Check(_load_name(label, name), told, f"{now:.2f} s", _within(now, wanted, LOAD))


def _within(found: float, wanted: float, times: float) -> bool:
    return wanted / times <= found <= wanted * times
