"""Plain words on what a compression did not bring."""

from __future__ import annotations

from collections.abc import Sequence

from .result import ModelResult, Quality, Speedup

SAME_SIZE = 0.98  # of the baseline's bytes; above it nothing was saved
SAME_SPEED = 1.02  # ratio up to which nothing was gained
MANY_ZEROS = 0.10
BUSY = 0.05
EXPORT_LOSS = 0.01  # of the metric, or a share of it where lower is better: an export against PyTorch


def findings(
    baseline: ModelResult, compressed: ModelResult, speedup: Sequence[Speedup], waiting: float = 0.0
) -> list[str]:
    """Return a sentence for each thing that got no smaller, no faster, or worse only in an export.

    `waiting` is the share of the timing in which other processes held the processor.
    """
    return [
        *_size(baseline, compressed),
        *_speed(speedup),
        *_zeros(compressed),
        *_exports(compressed),
        *_disturbance(waiting),
    ]


def _size(baseline: ModelResult, compressed: ModelResult) -> list[str]:
    share = compressed.size_bytes / baseline.size_bytes
    if share < SAME_SIZE:
        return []
    return [
        f"The compressed checkpoint is not smaller: {compressed.size_bytes / 1e6:.1f} MB against "
        f"{baseline.size_bytes / 1e6:.1f} MB ({share:.2f}×)."
    ]


def _speed(speedup: Sequence[Speedup]) -> list[str]:
    found = []
    for row in speedup:
        if row.engine != row.baseline_engine or row.ratio > SAME_SPEED:
            continue
        word = "slower than" if row.ratio < 1 / SAME_SPEED else "no faster than"
        shape = f"{row.batch}×{row.length or row.image_size}"
        found.append(f"{row.engine} at {shape} is {word} the same engine on the original ({row.ratio:.2f}×).")
    return found


def _zeros(compressed: ModelResult) -> list[str]:
    share = 1 - compressed.nonzeros / compressed.parameters
    if share <= MANY_ZEROS:
        return []
    return [
        f"{share:.0%} of the compressed model's weights are zero. No engine measured here skips them: they save no "
        "time, and bytes only in layers that are stored without them."
    ]


def _exports(compressed: ModelResult) -> list[str]:
    pytorch = compressed.quality_in("pytorch")
    if pytorch is None:
        return []
    return [_export(q, pytorch) for q in compressed.quality if q.shortfall(pytorch) > EXPORT_LOSS]


def _export(quality: Quality, pytorch: Quality) -> str:
    loss = quality.shortfall(pytorch)
    if quality.higher_is_better:
        return f"{quality.engine} loses {loss:.3f} {quality.metric} against the same model in PyTorch."
    return (
        f"{quality.engine} has {loss:.1%} more {quality.metric} than the same model in PyTorch "
        f"({quality.value:.2f} against {pytorch.value:.2f})."
    )


def _disturbance(waiting: float) -> list[str]:
    if waiting <= BUSY:
        return []
    return [
        f"Other processes held the processor during timing (threads waited {waiting:.0%} of the time): the times and "
        "speed ratios are uncertain. Run the benchmark again on an idle machine."
    ]
