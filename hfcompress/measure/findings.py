"""Plain words on what a compression did not bring."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..core.method import Category
from .result import Method, ModelResult, Quality, Speedup

SAME_SIZE = 0.98  # of the baseline's bytes; above it nothing was saved
SAME_SPEED = 1.02  # ratio up to which nothing was gained
MANY_ZEROS = 0.10
BUSY = 0.05
EXPORT_LARGER = 1.10  # of the checkpoint's bytes, from here on an export is named
NOT_IN_FILE = 1.10  # how far the file's share may lie above that of the parameters
EXPORT_LOSS = 0.01  # of the metric, or a share of it where lower is better: an export against PyTorch

# What the notes in `ModelResult.runs_in` call few bits, and products that are computed in them.
_FEW_BITS = re.compile(r"\b\d-bit")
_INTEGER = re.compile(r"activations int8|kernels .*(Integer|Quantize|NBits|QLinear|\b[iu]8\b)")


def findings(
    baseline: ModelResult,
    compressed: ModelResult,
    speedup: Sequence[Speedup],
    waiting: float = 0.0,
    methods: Sequence[Method] = (),
) -> list[str]:
    """Return a sentence for each thing that got no smaller, no faster, or worse only in an export.

    `waiting` is the share of the timing in which other processes held the processor; `methods` are those of the run.
    """
    return [
        *_size(baseline, compressed),
        *_parameters(baseline, compressed),
        *_speed(speedup),
        *_zeros(baseline, compressed),
        *_bits(baseline, compressed, methods),
        *_large_exports(compressed),
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
        place = "at" if row.examples is None else "on"
        found.append(f"{row.engine} {place} {row.short} is {word} the same engine on the original ({row.ratio:.2f}×).")
    return found


def _parameters(baseline: ModelResult, compressed: ModelResult) -> list[str]:
    """Name parameters that are gone from the model but not from its file, as where a file got a wider type."""
    left, file = compressed.parameters / baseline.parameters, compressed.size_bytes / baseline.size_bytes
    if left >= SAME_SIZE or file <= NOT_IN_FILE * left:
        return []
    return [
        f"Parameters fell to {left:.0%} but the weight files only to {file:.0%} of the original's: "
        "the count promises more than the bytes hold."
    ]


def _zeros(baseline: ModelResult, compressed: ModelResult) -> list[str]:
    share = 1 - compressed.nonzeros / compressed.parameters
    if share <= MANY_ZEROS:
        return []
    stored = _bytes_per_parameter(compressed) >= SAME_SIZE * _bytes_per_parameter(baseline)
    words = (
        "They lie in the file in full: they save neither time nor bytes."
        if stored
        else "No engine measured here skips them: they save no time, and bytes only in layers that are stored without "
        "them."
    )
    return [f"{share:.0%} of the compressed model's weights are zero. {words}"]


def _bits(baseline: ModelResult, compressed: ModelResult, methods: Sequence[Method]) -> list[str]:
    """Name quantization that no file and no engine shows: rounded weights kept as floats, or widened everywhere."""
    if any(_FEW_BITS.search(note) for note in compressed.runs_in.values()):
        if any(_INTEGER.search(note) for note in compressed.runs_in.values()):
            return []
        return [
            "Weights are stored in few bits, but every engine measured here widens them and computes in floats: they "
            "save bytes, and no time."
        ]
    quantizes = any(method.category == Category.QUANTIZATION for method in methods)
    if not quantizes or _bytes_per_parameter(compressed) < SAME_SIZE * _bytes_per_parameter(baseline):
        return []
    return [
        "A quantization method ran, but the file holds its weights as floats in full: the rounding costs accuracy and "
        "saves nothing."
    ]


def _bytes_per_parameter(model: ModelResult) -> float:
    return model.size_bytes / model.parameters


def _large_exports(compressed: ModelResult) -> list[str]:
    return [
        f"`{name}` is {size / compressed.size_bytes:.2f}× as large as the checkpoint: {size / 1e6:.1f} MB against "
        f"{compressed.size_bytes / 1e6:.1f} MB."
        for name, size in compressed.exports.items()
        if size > EXPORT_LARGER * compressed.size_bytes
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
