"""The recipe's `require:` lines: named numbers of a result, each defined once, compared with a bound."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ..core.errors import MeasureError, RecipeError, nearest
from .result import EXACT, Difference, Requirement, Result

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
Quantity = Callable[..., float]  # of a result, and where each engine has its own, of an engine
_SPEEDUP_OF = re.compile(r"speedup_([1-9]\d*)")
_EXPRESSION = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Bound:
    """One parsed requirement."""

    name: str
    text: str
    compare: Callable[[float, float], bool]
    bound: float

    def met(self, measured: float) -> bool:
        """Say whether the bound holds; 0.91 less 0.90 is 0.01 here, as it is on paper."""
        return self.compare(round(measured, EXACT), self.bound)


def parse_requirement(name: str, text: str, metric: str = "accuracy", batches: Collection[int] | None = None) -> Bound:
    """Return the requirement; RecipeError names the nearest when `name` is none, or shows how a bound is written.

    `metric` is the run's: its `<metric>_drop` and `<metric>_ratio` may be asked for, and `speedup_<batch>` of
    `batches`, those it times (None: any).
    """
    timed = _SPEEDUP_OF.fullmatch(name)
    known = [*quantities(metric), *(f"speedup_{batch}" for batch in batches or ())]
    if name not in known and (timed is None or batches is not None):
        raise RecipeError(f"require.{name}: no such number is measured.{nearest(name, known)}")
    match = _EXPRESSION.fullmatch(str(text))
    if match is None:
        raise RecipeError(f"require.{name}: {text!r} is not a bound; write >=, <=, > or < and a number, such as '>=8'.")
    return Bound(name, str(text), _OPERATORS[match[1]], float(match[2]))


def check(result: Result, wanted: Mapping[str, str]) -> list[Requirement]:
    """Return each requirement with the number measured and whether it is met.

    Raises RecipeError for a bad line, MeasureError when the run did not measure what a line asks for.
    """
    checked = []
    metric = result.difference[0].metric if result.difference else "accuracy"
    bounds = [parse_requirement(name, text, metric) for name, text in wanted.items()]
    quality = {bound: _of_quality(metric)[bound.name] for bound in bounds if bound.name in _of_quality(metric)}
    for bound in bounds:
        measured = _measured(result, bound.name, metric, quality)
        met = bound.met(measured)
        checked.append(Requirement(name=bound.name, wanted=bound.text, measured=measured, met=met))
    return checked


def size_mb(result: Result) -> float:
    """Megabytes (10^6 bytes) of the compressed checkpoint's weight files."""
    return result.compressed.size_bytes / 1e6


def parameter_ratio(result: Result) -> float:
    """Parameters of the baseline over those of the compressed model."""
    return result.baseline.parameters / result.compressed.parameters


def flops_ratio(result: Result) -> float:
    """Operations of the baseline over those of the compressed model, at the shape that gains least."""
    shapes = result.baseline.flops.keys() & result.compressed.flops.keys()
    if not shapes:
        raise MeasureError("require.flops_ratio: this run counted no operations; add shapes to `benchmark`.")
    return min(result.baseline.flops[s] / result.compressed.flops[s] for s in shapes)


def metric_drop(result: Result, engine: str = "pytorch") -> float:
    """How much worse the compressed model is in `engine`, in the metric's own unit: 0.01 of accuracy is one point.

    The metric of the baseline less that of the compressed model; the other way round where lower is better.
    """
    return _difference(result, "metric_drop", engine).loss


def metric_ratio(result: Result, engine: str = "pytorch") -> float:
    """Metric of the compressed model over that of the baseline in `engine`."""
    _difference(result, "metric_ratio", engine)
    before, after = (model.quality_in(engine) for model in (result.baseline, result.compressed))
    if before is None or after is None or before.value == 0:
        raise MeasureError(f"require.metric_ratio: the baseline's metric is zero, or was not measured in {engine}.")
    return after.value / before.value


def agreement(result: Result, engine: str = "pytorch") -> float:
    """Share of examples on which both models predict the same in `engine`."""
    return _difference(result, "agreement", engine).agreement


def speedup(result: Result, batch: int | None = None, quality: Mapping[Bound, Quantity] | None = None) -> float:
    """Best engine against the baseline in PyTorch, on the workload that gains least, real examples included.

    `batch` leaves out all other workloads. An engine in which one of the bounds of `quality` does not hold is not
    counted: no run may meet its requirements by the time of one engine and the metric of another. Where none is left
    the speedup is zero. Without such bounds the best engine is that of `Result.best_speedups`.
    """
    name = "speedup" if batch is None else f"speedup_{batch}"
    rows = [row for row in result.speedup if row.baseline_engine == "pytorch" and batch in (None, row.batch)]
    if not rows:
        raise MeasureError(f"require.{name}: this run timed nothing{'' if batch is None else ' at that batch'}; add "
                           "shapes to `benchmark`.")  # fmt: skip
    if not quality:
        return min(row.ratio for row in result.best_speedups() if batch in (None, row.batch))
    good = {engine for engine in {row.engine for row in rows} if _holds(result, engine, quality)}
    workloads = dict.fromkeys(row.workload for row in rows)
    return min(
        max((row.ratio for row in rows if row.workload == one and row.engine in good), default=0.0) for one in workloads
    )


def _holds(result: Result, engine: str, quality: Mapping[Bound, Quantity]) -> bool:
    """Say whether every bound is met by what was measured in `engine`."""
    try:
        return all(bound.met(measure(result, engine)) for bound, measure in quality.items())
    except MeasureError:  # it was timed only
        return False


def _measured(result: Result, name: str, metric: str, quality: Mapping[Bound, Quantity]) -> float:
    """Return the number called `name`; speedups are those of engines in which the bounds of `quality` hold."""
    if name == "speedup":
        return speedup(result, quality=quality)
    if timed := _SPEEDUP_OF.fullmatch(name):
        return speedup(result, int(timed[1]), quality)
    return quantities(metric)[name](result)


def quantities(metric: str) -> dict[str, Quantity]:
    """Return every number a requirement may name in a run whose metric is `metric`."""
    return {**QUANTITIES, **_of_quality(metric)}


def _of_quality(metric: str) -> dict[str, Quantity]:
    """Return the numbers that each engine has its own of: what may be asked of the answers."""
    return {**QUALITY, f"{metric}_drop": metric_drop, f"{metric}_ratio": metric_ratio}


QUALITY: dict[str, Quantity] = {"metric_drop": metric_drop, "metric_ratio": metric_ratio, "agreement": agreement}
QUANTITIES: dict[str, Quantity] = {
    "size_ratio": lambda result: result.size_ratio,
    "size_mb": size_mb,
    "parameter_ratio": parameter_ratio,
    "flops_ratio": flops_ratio,
    "speedup": speedup,
}


def _difference(result: Result, name: str, engine: str) -> Difference:
    found = next((row for row in result.difference if row.engine == engine), None)
    if found is None:
        raise MeasureError(f"require.{name}: this run evaluated nothing in {engine}; add `evaluate` to the recipe.")
    return found
