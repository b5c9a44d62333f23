"""The numbers of a card as people read them: units, ratios, points with intervals, and the rows of its table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..core.metric import scale_of, signed_text
from ..measure.result import WORSE, WORSE_SHARE, Difference, LatencyRow, ModelResult, Result, Workload

NONE = "–"
_ENGINES = {
    "pytorch": "PyTorch",
    "pytorch-compile": "PyTorch, torch.compile",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-int8": "ONNX Runtime int8",
    "onnxruntime-static-int8": "ONNX Runtime static int8",
    "onnxruntime-w8": "ONNX Runtime, weights in 8 bits",
    "onnxruntime-w4": "ONNX Runtime, weights in 4 bits",
    "openvino": "OpenVINO",
    "openvino-int8": "OpenVINO int8",
}


@dataclass(frozen=True)
class Row:
    """One line of the table before / after / change."""

    name: str
    before: str
    after: str
    change: str


def table(result: Result) -> list[Row]:
    """Return every row of the card's table, in the order people ask, from size and work to memory and exports."""
    return [
        *_size_rows(result),
        *_quality_rows(result),
        *_latency_rows(result),
        *_memory_rows(result),
        *_load_rows(result),
        *_energy_rows(result),
        *_export_rows(result),
    ]


def si(value: float, unit: str = "") -> str:
    """Return `value` with three digits and a decimal prefix, such as ``90.9 MB``."""
    for exponent, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 0.9995 * 10**exponent:
            return f"{_three(value / 10**exponent)} {prefix}{unit}".rstrip()
    return f"{value:.0f} {unit}".rstrip()


def ratio(value: float) -> str:
    """Return a ratio such as ``8.12x``: two decimals below ten, one above."""
    return f"{value:.2f}x" if value < 9.995 else f"{value:.1f}x"


def change(before: float, after: float, better: str = "smaller", worse: str = "larger") -> str:
    """Return how many times smaller (or `better`) `after` is than `before`, in words that turn when it got worse."""
    if before <= 0 or after <= 0:
        return NONE
    if ratio(before / after) == ratio(1) == ratio(after / before):
        return "unchanged"
    return f"{ratio(before / after)} {better}" if before > after else f"{ratio(after / before)} {worse}"


def engine_name(engine: str) -> str:
    """Return an engine's name as its makers write it."""
    return _ENGINES.get(engine, engine)


def shape_name(row: Workload) -> str:
    """Return a workload such as ``8 × 128 tokens``, ``1 × 224 px`` or ``100 real texts, 1 at a time``."""
    if row.examples is not None:
        return f"{row.short}, {row.batch} at a time"
    if row.length is not None:
        return f"{row.batch} × {row.length} tokens"
    return f"{row.batch} × {row.image_size} px" if row.image_size is not None else f"batch {row.batch}"


def metric_scale(result: Result) -> float:
    """Return 100 for a metric that lies in [-1, 1], shown in per cent and points, otherwise, and for an error, 1."""
    higher = all(row.higher_is_better for row in result.compressed.quality)
    return scale_of((q.value for model in (result.baseline, result.compressed) for q in model.quality), higher=higher)


def metric(result: Result, value: float) -> str:
    """Return a value of the metric, in per cent where the metric is a share."""
    return signed_text(f"{value * metric_scale(result):.2f}")


def points(result: Result, value: float) -> str:
    """Return a difference of the metric with its sign, in points where the metric is a share."""
    return signed(result, value) + (" points" if metric_scale(result) == 100 else "")


def signed(result: Result, value: float) -> str:
    """Return a difference of the metric with its sign and no unit."""
    return signed_text(f"{value * metric_scale(result):+.2f}")


def tolerated(result: Result) -> str:
    """Return how much worse than in PyTorch the metric may be in an engine that tables call the best."""
    return f"{100 * WORSE:g} points" if result.headline().higher_is_better else f"{WORSE_SHARE:.0%}"


def interval(result: Result, row: Difference) -> str:
    """Return a paired difference with its interval, such as ``−0.80 points (95% interval −1.95 to +0.34)``."""
    low, high = (signed(result, bound) for bound in (row.low, row.high))
    return f"{points(result, row.value)} ({row.level:.0%} interval {low} to {high})"


def metric_name(result: Result) -> str:
    """Return the metric's name as a row's title, and which way is better where that is not the usual one."""
    head = result.headline()
    unit = "%" if metric_scale(result) == 100 else ""
    notes = ", ".join(note for note in (unit, "" if head.higher_is_better else "lower is better") if note)
    return f"{head.metric.capitalize()} ({notes})" if notes else head.metric.capitalize()


def agreement(row: Difference) -> str:
    """Return how often both models predict the same, such as ``98.2% of 872 examples``."""
    if row.counted == "examples":
        return f"{row.agreement:.1%} of {row.examples} examples"
    return f"{row.agreement:.1%} of the {row.counted} in {row.examples} examples"


def where(row: Workload) -> str:
    """Return a workload as it stands in a sentence: ``at 8 × 128 tokens``, ``on 100 real texts, 1 at a time``."""
    return f"{'at' if row.examples is None else 'on'} {shape_name(row)}"


def find_latency(model: ModelResult, engine: str, row: Workload) -> LatencyRow | None:
    """Return the time of `model` in `engine` at the workload of `row`, if it was measured."""
    return next((r for r in model.latency if r.engine == engine and same_shape(r, row)), None)


def same_shape(one: Workload, other: Workload) -> bool:
    """Return whether two rows are of the same workload."""
    return one.workload == other.workload


def _size_rows(result: Result) -> Iterator[Row]:
    before, after = result.baseline, result.compressed
    yield _row("Weight files", before.size_bytes, after.size_bytes, "B")
    yield _row("Parameters", before.parameters, after.parameters)
    yield _row("Parameters that are not zero", before.nonzeros, after.nonzeros)
    if after.image_size and before.image_size and after.image_size != before.image_size:
        yield _row("Pixels per side of an image", before.image_size, after.image_size)
    for shape, work in after.flops.items():
        yield _row(f"FLOPs at {shape.replace('x', ' × ')}", before.flops.get(shape), work)


def _quality_rows(result: Result) -> Iterator[Row]:
    differences = {(d.engine, d.metric): d for d in result.difference}
    for after in result.compressed.quality:
        before = result.baseline.quality_in(after.engine)
        row = differences.get((after.engine, after.metric))
        yield Row(
            f"{metric_name(result)}, {engine_name(after.engine)}",
            metric(result, before.value) if before else NONE,
            metric(result, after.value),
            interval(result, row) if row else NONE,
        )


def _latency_rows(result: Result) -> Iterator[Row]:
    for after in result.compressed.latency:
        before = find_latency(result.baseline, after.engine, after)
        kind = "p50" if after.examples is None else "mean"
        yield Row(
            f"Latency {kind}, {shape_name(after)}, {engine_name(after.engine)}",
            milliseconds(before.time_ms) if before else NONE,
            milliseconds(after.time_ms),
            change(before.time_ms, after.time_ms, "faster", "slower") if before else NONE,
        )
        if after.examples is not None:
            name = f"Latency p50 / p90 / p99, {shape_name(after)}, {engine_name(after.engine)}"
            yield Row(name, _tail(before) if before else NONE, _tail(after), NONE)


def _tail(row: LatencyRow) -> str:
    """Return the percentiles over real examples, with one unit."""
    times = (NONE if t is None else _three(t) for t in (row.p50_ms, row.p90_ms, row.p99_ms))
    return f"{' / '.join(times)} ms"


def _memory_rows(result: Result) -> Iterator[Row]:
    for engine, after in result.compressed.peak_memory_bytes.items():
        before = result.baseline.peak_memory_bytes.get(engine)
        yield _row(f"Peak memory of the process, {engine_name(engine)}", before, after, "B")


def _load_rows(result: Result) -> Iterator[Row]:
    for engine, after in result.compressed.load_seconds.items():
        before, name = result.baseline.load_seconds.get(engine), f"From file to first output, {engine_name(engine)}"
        yield Row(
            name,
            milliseconds(1000 * before) if before else NONE,
            milliseconds(1000 * after),
            change(before, after, "faster", "slower") if before else NONE,
        )


def _energy_rows(result: Result) -> Iterator[Row]:
    for engine, after in result.compressed.energy_j.items():
        before = result.baseline.energy_j.get(engine)
        yield Row(
            f"Energy of a pass at the smallest shape, {engine_name(engine)}",
            f"{_three(1000 * before)} mJ" if before else NONE,
            f"{_three(1000 * after)} mJ",
            change(before, after) if before else NONE,
        )


def _export_rows(result: Result) -> Iterator[Row]:
    for name, after in result.compressed.exports.items():
        yield _row(f"`{name}`", result.baseline.exports.get(name), after, "B")


def _row(name: str, before: float | None, after: float, unit: str = "") -> Row:
    if before is None:
        return Row(name, NONE, si(after, unit), NONE)
    return Row(name, si(before, unit), si(after, unit), change(before, after))


def milliseconds(value: float) -> str:
    """Return a time in milliseconds with three digits."""
    return f"{_three(value)} ms"


def _three(value: float) -> str:
    """Return `value` with three digits: two decimals below ten, one below a hundred, none above."""
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}"
