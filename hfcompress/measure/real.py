"""Latency on real examples as they come: each of its own length, one at a time, not one fixed shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import MeasureError
from ..export.runtime import Source, engine, require_any_length, why_not
from .batches import read_batches, write_batches
from .latency import ROUNDS, SECONDS, TAIL_PASSES, Latency, by_engine, time_rounds, timing_workers
from .onnx_file import read_onnx
from .process import Progress, quietly
from .result import LatencyRow
from .workloads import checkpoint_spec

Array = np.ndarray
Facts = Mapping[str, Any]  # of a row, besides its times


def spaced(total: int, count: int) -> list[int]:
    """Return `count` row numbers, or all, evenly spaced through `total` rows: a sorted split is not cut short."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def write_real(path: Path, batches: Iterable[Mapping[str, Any]]) -> int:
    """Store real examples, one to a batch and without the padding their masks mark; return how many there were."""
    return write_batches(path, map(unpadded, batches))


def unpadded(batch: Mapping[str, Any]) -> dict[str, Array]:
    """Return a batch of one example (1, tokens) with the tokens alone that its attention mask lets be seen."""
    arrays = {name: np.asarray(value) for name, value in batch.items() if hasattr(value, "shape")}
    mask = arrays.get("attention_mask")
    if mask is None or mask.all():
        return arrays
    keep = mask[0] != 0
    return {name: value[:, keep] if value.shape == mask.shape else value for name, value in arrays.items()}


def measure_real(
    models: Mapping[str, Source],
    engines: Sequence[str],
    files: Mapping[str, Path],
    *,
    auto_class: str,
    threads: int,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    on_progress: Progress = quietly,
) -> Latency:
    """Return a row per engine for each model, timed on the examples of `write_real` as that model reads them.

    `files` are by label and hold the same examples in the same order. A round is a pass over all of them by every
    model in turn, in an engine opened for inputs of any length; one pass before is not counted. The row's percentiles
    are over examples, of each of which the median over rounds counts. `seconds` is for one engine; a pass takes what
    it takes, so only rounds beyond the least are left out. Raises MeasureError for what takes one length only.
    """
    facts = check_real(models, engines, files, auto_class)
    job = {
        "models": {label: source.to_json() for label, source in models.items()},
        "inputs": {label: str(files[label]) for label in models},
        "auto_class": auto_class,
        "threads": threads,
        "any_shape": True,
    }
    rows: dict[str, list[LatencyRow]] = {label: [] for label in models}
    with timing_workers(models, engines, job) as workers:
        for worker in workers.values():
            worker.ask("examples")  # warms up, and compiles where an engine does
        timed = time_rounds(workers, lambda name: workers[name].ask("examples"), rounds, seconds, on_progress)
    for (name, label), times in timed.times_ms.items():
        rows[label].append(real_row(name, facts[label], threads, np.reshape(times, (timed.rounds, -1))))
    return Latency({label: by_engine(found, engines) for label, found in rows.items()}, timed.waiting)


def real_row(name: str, facts: Facts, threads: int, times_ms: Array) -> LatencyRow:
    """Summarize the times (rounds, examples) of one model in one engine, each example's median over the rounds."""
    each = np.median(times_ms, axis=0)
    p50, p90, p99 = (float(v) for v in np.quantile(each, [0.5, 0.9, 0.99]))
    return LatencyRow(
        engine=name,
        batch=1,
        **facts,
        threads=threads,
        rounds=len(times_ms),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99 if each.size >= TAIL_PASSES else None,
        passes=times_ms.size,
        throughput_per_s=1000 * each.size / float(each.sum()),
    )


def check_real(
    models: Mapping[str, Source], engines: Sequence[str], files: Mapping[str, Path], auto_class: str
) -> dict[str, Facts]:
    """Return what each model's examples are; MeasureError when a model, or an engine's file of it, cannot take them.

    Told before any process starts: an engine that prepares for one length, a file with fixed axes, texts longer than
    the model, tokens it has no row for, images for a model of texts.
    """
    facts = {label: _checked(label, source, engines, auto_class, files[label]) for label, source in models.items()}
    if len({found["examples"] for found in facts.values()}) > 1:
        raise MeasureError("the models' files hold different numbers of examples: they cannot be the same ones")
    return facts


def _checked(label: str, source: Source, engines: Sequence[str], auto_class: str, file: Path) -> Facts:
    for name in engines:
        if not why_not(name, source):
            require_any_length(name)
    facts, most, largest = _facts(file)
    spec = checkpoint_spec(source, auto_class)
    if spec.is_image != (facts["kind"] == "images"):
        raise MeasureError(f"{label} takes {'images' if spec.is_image else 'texts'}, the data are {facts['kind']}")
    for where, fixed in _fixed(source, engines) if most else ():
        raise MeasureError(
            f"{where} takes {fixed} only, and real texts have any length: export the model with dynamic axes, or leave "
            "this workload or engine out"
        )
    if spec.max_length and most > spec.max_length:
        raise MeasureError(f"{label} takes {spec.max_length} tokens, the longest text has {most}: set data.max_length")
    if spec.vocab_size and largest >= spec.vocab_size:
        raise MeasureError(
            f"{label} has a vocabulary of {spec.vocab_size:,} and the texts hold token {largest:,}: they were made by "
            "another tokenizer; put the model's own beside it"
        )
    return facts


def _facts(file: Path) -> tuple[dict[str, Any], int, int]:
    """Return a row's facts of the examples in a file, the tokens of the longest text, and the largest token."""
    lengths, largest, count = [], -1, 0
    for batch in read_batches(file):
        count += 1
        if (ids := batch.get("input_ids")) is not None:
            lengths.append(ids.shape[1])
            largest = max(largest, int(ids.max()))
    if not lengths:
        return {"kind": "images", "examples": count}, 0, largest
    tokens = min(lengths), round(float(np.median(lengths))), max(lengths)
    return {"kind": "texts", "examples": count, "tokens": tokens}, tokens[2], largest


def _fixed(source: Source, engines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the files of a text model that take one shape only, each with what it takes."""
    for name in engines:
        if why_not(name, source) or not (source.is_onnx or engine(name).file):
            continue
        file = source.export(engine(name).file or "")
        batch, length = _axes(file)
        if length is not None:
            yield file.name, f"a length of {length}"
        elif batch not in (None, 1):
            yield file.name, f"a batch of {batch}"


def _axes(file: Path) -> tuple[int | None, int | None]:
    """Return the batch and the length that a text model's exported file fixes; None: any."""
    if file.suffix == ".onnx":
        found = read_onnx(file)
        return found.batch, found.length
    import openvino

    shape = openvino.Core().read_model(str(file)).input("input_ids").get_partial_shape()
    batch, length = (None if size.is_dynamic else size.get_length() for size in shape)
    return batch, length
