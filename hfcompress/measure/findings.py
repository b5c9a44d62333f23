"""Plain words on what a compression did not bring."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..core.method import Category
from ..core.metric import is_better, written
from .result import BUSY, WORSE, WORSE_SHARE, Method, ModelResult, Quality, Speedup

SAME_SIZE = 0.98  # of the baseline's bytes; above it nothing was saved
SAME_SPEED = 1.02  # ratio up to which nothing was gained
MANY_ZEROS = 0.10
EXPORT_LARGER = 1.10  # of the checkpoint's bytes, from here on an export is named
NOT_IN_FILE = 1.10  # how far the file's share may lie above that of the parameters
GREW = 1.25  # memory or time to load against the original's in the same engine

# What the notes in `ModelResult.runs_in` call few bits or packed, and products that are computed in integers.
_FEW_BITS = re.compile(r"\b\d-bit")
_PACKED = re.compile(r"\b\d-bit|ternary|without zeros|codebook", re.IGNORECASE)
_AS_THEY_COME = re.compile(r"activations int8, .*dynamic")
_INTEGER = re.compile(r"activations int8|kernels .*(Integer|Quantize|QLinear|\b[iu]8\b)")
_STAYS_PACKED = re.compile(r"kernels .*NBits")  # it widens a block at a time, and multiplies floats


def findings(
    baseline: ModelResult,
    compressed: ModelResult,
    speedup: Sequence[Speedup],
    waiting: float | None = None,
    methods: Sequence[Method] = (),
    trivial: float | None = None,
) -> list[str]:
    """Return a sentence for each thing that got no smaller, no faster, larger elsewhere, or another in an export.

    `waiting` is the share of the timing in which other processes held the processor, None where that is not known;
    `methods` are those of the run, `trivial` is the metric of a guess that looks at no example.
    """
    return [
        *_guess(baseline, trivial),
        *_size(baseline, compressed),
        *_parameters(baseline, compressed),
        *_speed(speedup),
        *_zeros(baseline, compressed),
        *_bits(baseline, compressed, methods),
        *_large_exports(compressed),
        *_exports(compressed),
        *_memory(baseline, compressed),
        *_loading(baseline, compressed),
        *_disturbance(waiting),
    ]


def _guess(baseline: ModelResult, trivial: float | None) -> list[str]:
    found = baseline.quality_in("pytorch")
    if found is None or trivial is None or is_better(found.value, trivial, higher=found.higher_is_better):
        return []
    value, guess = (
        written(one, other, higher=found.higher_is_better)
        for one, other in ((found.value, trivial), (trivial, found.value))
    )
    return [
        f"The original is no better than a guess that looks at no example: {found.metric} {value} against {guess}. "
        "What compression costs cannot be seen on it."
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
    return [
        _export(q, pytorch, compressed.runs_in.get(q.engine, ""))
        for q in compressed.quality
        if abs(q.shortfall(pytorch)) > (WORSE if q.higher_is_better else WORSE_SHARE)
    ]


def _export(quality: Quality, pytorch: Quality, note: str) -> str:
    loss = quality.shortfall(pytorch)
    why = ""
    if loss > 0 and _AS_THEY_COME.search(note):
        why = ": its kernels round activations as they come; grids trained or calibrated beforehand come closer"
    if quality.higher_is_better:
        side = "below" if loss > 0 else "above"
        return (
            f"In {quality.engine} the {quality.metric} is {100 * quality.value:.2f}, {100 * abs(loss):.2f} points "
            f"{side} PyTorch's{why}."
        )
    word = "more" if loss > 0 else "less"
    return (
        f"{quality.engine} has {abs(loss):.1%} {word} {quality.metric} than the same model in PyTorch "
        f"({quality.value:.2f} against {pytorch.value:.2f}){why}."
    )


def _memory(baseline: ModelResult, compressed: ModelResult) -> list[str]:
    """Name engines in which the smaller file takes more memory, as where packed weights are widened."""
    smaller = baseline.size_bytes / compressed.size_bytes
    disk = f"{smaller:.1f}× smaller on disk, but" if smaller > 1 / SAME_SIZE else "the compressed model takes"
    found = []
    for engine, (before, after) in _grown(baseline.peak_memory_bytes, compressed.peak_memory_bytes).items():
        note = compressed.runs_in.get(engine, "")
        widened = _PACKED.search(note) and not _INTEGER.search(note) and not _STAYS_PACKED.search(note)
        why = ", where packed weights are widened" if widened else ""
        found.append(
            f"{disk} {after / before:.2f}× the original's peak memory in {engine}{why}: {after / 1e6:.0f} MB against "
            f"{before / 1e6:.0f} MB."
        )
    return [sentence[:1].upper() + sentence[1:] for sentence in found]


def _loading(baseline: ModelResult, compressed: ModelResult) -> list[str]:
    return [
        f"Loading takes {after / before:.2f}× as long as the original's in {engine}: {after:.2f} s against "
        f"{before:.2f} s."
        for engine, (before, after) in _grown(baseline.load_seconds, compressed.load_seconds).items()
    ]


def _grown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Return, by engine, both numbers where the second is much the larger."""
    return {e: (before[e], x) for e, x in after.items() if e in before and x > GREW * before[e]}


def _disturbance(waiting: float | None) -> list[str]:
    if waiting is None or waiting <= BUSY:
        return []
    return [
        f"Other processes held the processor during timing (threads waited {waiting:.0%} of the time): the times and "
        "speed ratios are uncertain. Run the benchmark again on an idle machine."
    ]
