"""Everything measured of saved models, the first of which is the one the others are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoint import load_model
from ..core.errors import ExportError, MeasureError
from ..export.inputs import example_inputs
from ..export.notes import runs_in
from ..export.runtime import Source, engine, why_not
from .batches import read_batches
from .exported import digests, stale
from .flops import count_flops
from .latency import ROUNDS, SECONDS, Latency, by_engine, measure_latency, speedups
from .layout import layout_of
from .onnx_file import describe_onnx, read_onnx
from .opening import Opened, measure_opening
from .process import Progress, part, quietly
from .quality import EvaluationSet, evaluate
from .real import check_real, measure_real
from .result import Difference, ModelResult, Quality, Speedup
from .size import checksum, count_parameters, export_files, local_folder, weight_files
from .workloads import Shape

ENGINES = ("pytorch", "onnxruntime", "onnxruntime-int8")
_PHASES = {"export": (0.0, 0.2), "timing": (0.2, 0.6), "memory": (0.6, 0.7), "quality": (0.7, 1.0)}


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    auto_class: str
    shapes: Sequence[Shape]
    engines: Sequence[str] = ENGINES
    threads: int = 1
    rounds: int = ROUNDS  # 0: neither time nor memory is measured
    seconds: float = SECONDS  # per engine and shape
    seed: int = 0
    real: Mapping[str, Path] = field(default_factory=dict)  # by model, the file of examples as they come; none: untimed
    lenient: bool = False  # whether an engine that a model cannot be exported to is left out of it, and the reason told


@dataclass(frozen=True)
class Bench:
    """What was measured: each model by label, and what the later ones gained or lost against the first."""

    models: dict[str, ModelResult]
    speedup: dict[str, list[Speedup]] = field(default_factory=dict)
    difference: dict[str, list[Difference]] = field(default_factory=dict)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)  # by model and engine, why it was not run there
    waiting: float = 0.0  # share of the timing in which other processes held the processor


def bench(
    models: Mapping[str, Source],
    settings: Settings,
    data: EvaluationSet | None = None,
    *,
    names: Mapping[str, str] | None = None,
    on_progress: Progress = quietly,
) -> Bench:
    """Export where an engine needs it, then measure size, operations, speed, memory and, given `data`, quality.

    The first of `models` is the baseline. `names` are what people call them (default: the Hub id or folder's name).
    Raises MeasureError or ExportError.
    """
    if not models or not settings.shapes or not settings.engines:
        raise MeasureError("nothing to measure: at least one model, one shape and one engine are needed")
    described, models = {}, dict(models)
    for index, (label, source) in enumerate(models.items()):
        _phase(on_progress, "export")(f"preparing {label}", index / len(models))
        described[label], models[label] = _described(source, settings, (names or {}).get(label))
    kept = data.kept if data is not None else None
    timed, opened = _speed(models, settings, kept, on_progress) if settings.rounds else _untimed(models)
    qualities: dict[str, list[Quality]] = {label: [] for label in models}
    differences: dict[str, list[Difference]] = {}
    if data is not None:
        qualities, differences = evaluate(
            models,
            settings.engines,
            data,
            auto_class=settings.auto_class,
            threads=settings.threads,
            seed=settings.seed,
            on_progress=_phase(on_progress, "quality"),
        )
    results = {
        label: described[label].model_copy(
            update={
                "latency": timed.rows[label],
                "peak_memory_bytes": opened.peak_bytes[label],
                "load_seconds": opened.load_seconds[label],
                "energy_j": opened.energy_j[label],
                "quality": qualities[label],
            }
        )
        for label in models
    }
    first, *others = models
    on_progress("measured", 1.0)
    gains = {label: speedups(timed.rows[first], timed.rows[label]) for label in others}
    skipped = {
        label: {name: why for name in settings.engines if (why := why_not(name, source))}
        for label, source in models.items()
    }
    return Bench(results, gains, differences, skipped, timed.waiting)


def _described(source: Source, settings: Settings, name: str | None) -> tuple[ModelResult, Source]:
    """Describe a model; also return its source, with the engines it turned out not to run in."""
    if source.is_onnx:
        found = describe_onnx(file := Path(source.checkpoint))
        for shape in settings.shapes:
            read_onnx(file).check(file, shape.batch, shape.length)
        notes = {one: runs_in(one, source, None) for one in settings.engines if not why_not(one, source)}
        return found.model_copy(update={"runs_in": notes, "name": name or found.name}), source
    try:
        return describe(source, settings, name), source
    except ExportError as error:
        if not settings.lenient:
            raise
        skips = {one: str(error).splitlines()[0] for one in settings.engines if engine(one).file}
        kept = [one for one in settings.engines if one not in skips]
        return describe(source, replace(settings, engines=kept), name), replace(source, skips=skips)


def describe(source: Source, settings: Settings, name: str | None = None) -> ModelResult:
    """Return what needs no clock: files, parameters and operations; exports the model first where they are stale."""
    auto_class = source.auto_class or settings.auto_class
    model = load_model(source.checkpoint, auto_class, revision=source.revision, dtype=source.dtype)
    folder = local_folder(source.checkpoint, source.revision)
    exports = Path(source.exports or source.checkpoint)
    if stale := stale_engines(source, settings):
        _export(model, source, settings, stale)
    parameters, nonzeros = count_parameters(model)
    files = weight_files(folder)
    return ModelResult(
        name=name or (folder.name if Path(source.checkpoint).is_dir() else source.checkpoint),
        size_bytes=sum(files.values()),
        files=files,
        checksums={name: checksum(folder / name) for name in files},
        image_size=source.image_size,
        exports=export_files(exports),
        runs_in={name: runs_in(name, source, model) for name in settings.engines},
        layout=layout_of(model),
        parameters=parameters,
        nonzeros=nonzeros,
        flops={
            s.key: count_flops(model, example_inputs(model, 1, s.length, s.image_size or source.image_size))
            for s in _one_each(settings)
        },
    )


def _export(model: Any, source: Source, settings: Settings, engines: Sequence[str]) -> None:
    from ..export.onnx import export_onnx

    if source.exports is None and not Path(source.checkpoint).is_dir():
        raise MeasureError(
            f"{source.checkpoint} is not a local folder: say where its exports shall go (Source.exports)"
        )
    export_onnx(
        model,
        source.exports or source.checkpoint,
        engines=engines,
        image_size=_pixels(source, settings),
        calibration=read_batches(source.calibration) if source.calibration else None,
        made_of=digests(source),
    )


def stale_engines(source: Source, settings: Settings) -> list[str]:
    """Return the engines whose exported file is missing or no longer what exporting the checkpoint would give."""
    files = [name for name in settings.engines if engine(name).file]
    return stale(source, files, _pixels(source, settings)) if files else []


def _pixels(source: Source, settings: Settings) -> int | None:
    """Return the side of the images that an export takes; MeasureError when the shapes have several."""
    sizes = {shape.image_size or source.image_size for shape in settings.shapes} or {source.image_size}
    if len(sizes) > 1:
        raise MeasureError(
            f"an export has one image size; the shapes have {', '.join(map(str, sorted(filter(None, sizes))))}"
        )
    return sizes.pop()


def _one_each(settings: Settings) -> list[Shape]:
    """Return the shapes at batch 1: operations are per example, so the batch says nothing."""
    return list(dict.fromkeys(Shape(1, s.length, s.image_size) for s in settings.shapes))


def _untimed(models: Mapping[str, Source]) -> tuple[Latency, Opened]:
    return Latency({label: [] for label in models}, 0.0), Opened.of(models)


def _speed(
    models: Mapping[str, Source], settings: Settings, kept: Path | None, on_progress: Progress
) -> tuple[Latency, Opened]:
    common: dict[str, Any] = {
        "auto_class": settings.auto_class,
        "threads": settings.threads,
        "seed": settings.seed,
    }
    timing, memory = _phase(on_progress, "timing"), _phase(on_progress, "memory")
    parts = 1 + bool(settings.real)
    long: dict[str, Any] = {"rounds": settings.rounds, "seconds": settings.seconds}
    if settings.real:
        check_real(models, settings.engines, settings.real, settings.auto_class)  # before minutes of timing
    rows = measure_latency(
        models, settings.engines, settings.shapes, on_progress=part(timing, 0, parts), **long, **common
    )
    if settings.real:
        real = measure_real(
            models,
            settings.engines,
            settings.real,
            auto_class=settings.auto_class,
            threads=settings.threads,
            on_progress=part(timing, 1, parts),
            **long,
        )
        rows = _joined(rows, real, settings.engines)
    return rows, measure_opening(models, settings.engines, settings.shapes, kept=kept, on_progress=memory, **common)


def _joined(shapes: Latency, real: Latency, engines: Sequence[str]) -> Latency:
    """Return the times on fixed shapes and on real examples as one, in the order of the engines."""
    rows = {label: by_engine([*found, *real.rows[label]], engines) for label, found in shapes.rows.items()}
    return Latency(rows, max(shapes.waiting, real.waiting))


def _phase(on_progress: Progress, name: str) -> Progress:
    start, end = _PHASES[name]
    return lambda text, fraction: on_progress(text, start + fraction * (end - start))
