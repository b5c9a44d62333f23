"""A run's best engine on a workload: how much faster it is, what the metric is there, and how sure that is.

Tables and figures take these numbers from here, so that none pairs the time of one engine with the metric of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..measure.result import LatencyRow, Result, Speedup, Workload
from . import rows

_INTEGER = "activations int8"  # as the notes in `ModelResult.runs_in` say it


def best_on(result: Result, workload: Workload) -> Speedup | None:
    """Return the best engine on a workload against the original in PyTorch; None where it was not timed."""
    return next((s for s in result.best_speedups() if rows.shape_name(s) == rows.shape_name(workload)), None)


def value_in(result: Result, engine: str) -> float:
    """Return the compressed model's metric in an engine, or where it was not evaluated there that of the headline."""
    found = result.compressed.quality_in(engine) or result.compressed.quality_in(result.headline().engine)
    return found.value if found else float("nan")


def otherwise(results: Sequence[Result], engines: Sequence[str]) -> str:
    """Say what the metric is in the engines timed, one for each result, where that is not what the row says."""
    told, there = (
        rows.metric(results[0], sum(values) / len(values))
        for values in (
            [value_in(result, result.headline().engine) for result in results],
            [value_in(result, engine) for result, engine in zip(results, engines, strict=True)],
        )
    )
    return "" if told == there else f", at {there}"


def like_for_like(result: Result, best: Speedup) -> float | None:
    """Return how many times faster than the original in the same engine; None where that was not timed.

    Where the compressed model's own grids make the engine compute in int8, and the original computes in floats there,
    it is the original in the engine that computes in int8, or in its fastest one: else the engine's gain would count as
    the compression's.
    """
    after = rows.find_latency(result.compressed, best.engine, best)
    before = [row for row in result.baseline.latency if rows.same_shape(row, best)]
    if after is None or not before:
        return None
    like = [row for row in before if row.engine == best.engine]
    if _int8(result.compressed.runs_in, best.engine) and not _int8(result.baseline.runs_in, best.engine):
        family = best.engine.partition("-")[0]
        twin: Callable[[LatencyRow], bool] = lambda row: (  # noqa: E731
            row.engine.partition("-")[0] == family and _int8(result.baseline.runs_in, row.engine)
        )
        like = [row for row in before if twin(row)] or before
    return min(row.time_ms for row in like) / after.time_ms if like else None


def unsure(results: Sequence[Result]) -> str:
    """Return the mark of times that were taken while other processes held the processor."""
    return "~" if any(result.disturbed for result in results) else ""


def ratios(results: Sequence[Result], found: Sequence[Speedup]) -> str:
    """Return the means of both ratios, against PyTorch and like for like, one speedup for each result."""
    mark, like = unsure(results), [like_for_like(r, s) for r, s in zip(results, found, strict=True)]
    text = mark + rows.ratio(sum(s.ratio for s in found) / len(found))
    known = [ratio for ratio in like if ratio is not None]
    return text + (f" / {mark}{rows.ratio(sum(known) / len(known))}" if known else "")


def _int8(notes: dict[str, str], engine: str) -> bool:
    return _INTEGER in notes.get(engine, "")
