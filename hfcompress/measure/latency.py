"""Latency and throughput: a process per engine, engines and models in alternating rounds, on the same inputs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import MeasureError
from ..core.scratch import scratch_folder
from ..export.runtime import Source, engine, why_not
from .process import Progress, WorkerProcess, part, quietly
from .result import LatencyRow, Speedup, Workload
from .workloads import Shape, write_workloads

ROUNDS = 7
SECONDS = 5.0  # per engine and shape, all models together
WARMUP_SHARE = 0.25  # of these seconds, at most
PASSES = (3, 500)  # per model and round
PAUSE_S = 0.05
CALM = 0.02  # share of a round's time that threads may wait for a processor before the round is taken again
ATTEMPTS = 3
OVERRUN = 2.0  # times the seconds asked for, after which nothing is repeated and rounds beyond the least are left out
MIN_ROUNDS = 3
TAIL_PASSES = 100  # from here on a 99th percentile is more than the slowest pass


@dataclass(frozen=True)
class Timed:
    """All times at one shape by (engine, model), the rounds taken, and the most disturbed engine's share of waiting."""

    times_ms: dict[tuple[str, str], list[float]]
    rounds: int
    waiting: float


@dataclass(frozen=True)
class Latency:
    """Rows by model, and how much other processes disturbed them: the share of time threads waited for a processor."""

    rows: dict[str, list[LatencyRow]]
    waiting: float


def measure_latency(
    models: Mapping[str, Source],
    engines: Sequence[str],
    shapes: Sequence[Shape],
    *,
    auto_class: str,
    threads: int,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    seed: int = 0,
    on_progress: Progress = quietly,
) -> Latency:
    """Return a row per engine and shape for each model; `seconds` is the time for one engine at one shape.

    Raises MeasureError when an engine is unknown or its process fails.
    """
    with scratch_folder() as folder:
        job = job_of(models, Path(folder), shapes, auto_class, threads, seed)
        rows: dict[str, list[LatencyRow]] = {label: [] for label in models}
        waiting = 0.0
        with timing_workers(models, engines, job) as workers:
            for index, shape in enumerate(shapes):
                timed = time_shape(workers, index, rounds, seconds, part(on_progress, index, len(shapes)))
                waiting = max(waiting, timed.waiting)
                for (name, label), times in timed.times_ms.items():
                    rows[label].append(latency_row(name, shape, threads, timed.rounds, times))
    return Latency({label: by_engine(found, engines) for label, found in rows.items()}, waiting)


def by_engine(rows: Sequence[LatencyRow], engines: Sequence[str]) -> list[LatencyRow]:
    """Return rows in the order of their engines, and of an engine in the order they come."""
    return sorted(rows, key=lambda row: list(engines).index(row.engine))


@contextlib.contextmanager
def timing_workers(
    models: Mapping[str, Source], engines: Sequence[str], job: Mapping[str, Any]
) -> Iterator[dict[str, WorkerProcess]]:
    """Start a process for each engine with those models that run in it; MeasureError when none runs anywhere."""
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(WorkerProcess({**_in(name, job, models), "engine": name}, f"timing {name}"))
            for name in map(known, engines)
            if any(not why_not(name, source) for source in models.values())
        }
        if not workers:
            raise MeasureError(_nowhere(models, engines))
        yield workers


def time_shape(
    workers: Mapping[str, WorkerProcess], shape: int, rounds: int, seconds: float, on_progress: Progress
) -> Timed:
    """Time every engine and model at one shape, in `rounds` rounds or as many as a busy machine allows."""
    passes = {}
    for name, worker in workers.items():
        medians = worker.ask("warm", shape=shape, seconds=seconds * WARMUP_SHARE)
        share = seconds * (1 - WARMUP_SHARE) * 1000 / rounds / len(medians)  # ms a model has in a round
        passes[name] = {label: int(np.clip(share / max(t, 1e-3) - 1, *PASSES)) for label, t in medians.items()}

    def ask(name: str) -> dict[str, Any]:
        return workers[name].ask("round", shape=shape, passes=passes[name])

    return time_rounds(workers, ask, rounds, seconds, on_progress)


def time_rounds(
    workers: Mapping[str, WorkerProcess],
    ask: Callable[[str], dict[str, Any]],
    rounds: int,
    seconds: float,
    on_progress: Progress,
) -> Timed:
    """Ask for a round of every engine, `rounds` times or as often as a busy machine allows, and join the times.

    A round visits every engine and, in it, every model, so that what else the machine does touches all of them and
    a ratio between engines is as fair as one between models. The pause lets the last engine's threads fall asleep.
    """
    deadline = time.perf_counter() + OVERRUN * seconds * len(workers)
    times: dict[tuple[str, str], list[float]] = {}
    waited: dict[str, list[float]] = {name: [] for name in workers}
    done = 0
    while done < rounds and (done < MIN_ROUNDS or time.perf_counter() < deadline):
        for index, (name, worker) in enumerate(workers.items()):
            answer = _calm_round(name, ask, deadline)
            waited[name].append(answer["waiting"])
            for label, values in answer["times_ms"].items():
                times.setdefault((name, label), []).extend(values)
            on_progress(worker.what, (done + (index + 1) / len(workers)) / rounds)
        done += 1
    return Timed(times, done, max(float(np.median(shares)) for shares in waited.values()))


def _calm_round(name: str, ask: Callable[[str], dict[str, Any]], deadline: float) -> dict[str, Any]:
    """Return one round, of up to `ATTEMPTS` the one in which other processes took the least of the processor."""
    best: dict[str, Any] = {"waiting": float("inf")}
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_S * (attempt + 1))
        best = min(best, ask(name), key=lambda a: a["waiting"])
        if best["waiting"] <= CALM or time.perf_counter() > deadline:
            break
    return best


def latency_row(name: str, shape: Shape, threads: int, rounds: int, times_ms: Sequence[float]) -> LatencyRow:
    """Summarize all times of one model in one engine at one shape."""
    p50, p90, p99 = (float(v) for v in np.quantile(times_ms, [0.5, 0.9, 0.99]))
    return LatencyRow(
        engine=name,
        batch=shape.batch,
        length=shape.length,
        image_size=shape.image_size,
        threads=threads,
        rounds=rounds,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99 if len(times_ms) >= TAIL_PASSES else None,
        passes=len(times_ms),
        throughput_per_s=shape.batch / p50 * 1000,
    )


def speedups(baseline: Sequence[LatencyRow], compressed: Sequence[LatencyRow]) -> list[Speedup]:
    """Return the ratio of times of each row against the same engine, and against the baseline in PyTorch.

    Of a shape it is the ratio of medians; of real examples that of their total times, since every one of them has to
    be answered: long ones then count for what they take.
    """
    found = []
    for row in compressed:
        for other in baseline:
            if other.workload == row.workload and other.engine in dict.fromkeys((row.engine, "pytorch")):
                found.append(
                    Speedup(
                        **row.model_dump(include=set(Workload.model_fields)),
                        engine=row.engine,
                        baseline_engine=other.engine,
                        ratio=other.time_ms / row.time_ms,
                    )
                )
    return found


def _in(name: str, job: Mapping[str, Any], models: Mapping[str, Source]) -> dict[str, Any]:
    """Return the job with those of its models that run in the engine called `name`."""
    kept = {label: plain for label, plain in job["models"].items() if not why_not(name, models[label])}
    return {**job, "models": kept}


def _nowhere(models: Mapping[str, Source], engines: Sequence[str]) -> str:
    reasons = {why_not(name, source) for name in engines for source in models.values()}
    return f"no model runs in {', '.join(engines)}: {'; '.join(sorted(reasons))}"


def known(name: str) -> str:
    """Return the name of an engine there is; MeasureError for any other."""
    engine(name)
    return name


def job_of(
    models: Mapping[str, Source],
    folder: Path,
    shapes: Sequence[Shape],
    auto_class: str,
    threads: int,
    seed: int,
) -> dict[str, Any]:
    """Return a worker's job without its engine: the models, and a batch of each shape for them, written to `folder`."""
    inputs = write_workloads(folder, models, auto_class, shapes, seed)
    plain = {label: source.to_json() for label, source in models.items()}
    return {"models": plain, "inputs": inputs, "auto_class": auto_class, "threads": threads}
