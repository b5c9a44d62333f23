"""Peak memory, loading time and energy: a process for each model and engine, which holds nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core.scratch import scratch_folder
from ..export.runtime import Source, why_not
from .batches import batch_files
from .energy import SECONDS, joules, why_absent
from .kept import keeping, measured_key
from .latency import job_of, known
from .process import Progress, WorkerProcess, quietly
from .statistics import Array
from .workloads import Shape

_WHAT = "opening"


@dataclass(frozen=True)
class Opened:
    """What a process took that holds one model only: by label and engine, its peak resident bytes, and seconds to load.

    The seconds run from opening the file to the first output at the smallest shape, without the library's import.
    The energy, in joules, is that of a pass at that shape; none where this machine has no counter for it.
    """

    peak_bytes: dict[str, dict[str, int]]
    load_seconds: dict[str, dict[str, float]]
    energy_j: dict[str, dict[str, float]]

    @classmethod
    def of(cls, labels: Iterable[str]) -> Opened:
        """Return one of these models that holds nothing yet."""
        names = list(labels)
        return cls({label: {} for label in names}, {label: {} for label in names}, {label: {} for label in names})


def measure_opening(
    models: Mapping[str, Source],
    engines: Sequence[str],
    shapes: Sequence[Shape],
    *,
    auto_class: str,
    threads: int,
    seed: int = 0,
    kept: Path | None = None,
    on_progress: Progress = quietly,
) -> Opened:
    """Open each model in each engine in a process of its own; its peak is that of running the largest shape.

    `kept`: a folder in which what was measured of the same files on the same machine is found again.
    """
    ordered = sorted(shapes, key=lambda s: s.batch * (s.length or (s.image_size or 1) ** 2))
    ends = list(dict.fromkeys((ordered[0], ordered[-1])))
    found = Opened.of(models)
    with scratch_folder() as folder:
        job = job_of(models, Path(folder), ends, auto_class, threads, seed)
        pairs = ((label, name) for name in map(known, engines) for label in models)
        tasks = [(label, name) for label, name in pairs if not why_not(name, models[label])]
        for done, (label, name) in enumerate(tasks):
            numbers = _of_one(job, label, name, models[label], kept)
            found.load_seconds[label][name] = float(numbers[0])
            found.peak_bytes[label][name] = int(numbers[1])
            if len(numbers) > 2:
                found.energy_j[label][name] = float(numbers[2])
            on_progress("loading and memory", (done + 1) / len(tasks))
    return found


def _of_one(job: Mapping[str, Any], label: str, name: str, source: Source, kept: Path | None) -> Array:
    """Return the seconds, the bytes and, where it is counted, the energy of one model in one engine."""

    def compute() -> Array:
        single = {**job, "engine": name, "models": {label: job["models"][label]}}
        with WorkerProcess(single, f"loading {label} in {name}") as worker:
            numbers = [worker.ask("load"), worker.ask("memory")]
            if why_absent() is None:
                numbers.append(joules(partial(worker.ask, "spend", shape=0, seconds=SECONDS)))
        return np.array(numbers, np.float64)

    def key() -> str:
        return measured_key(source, name, batch_files(job["inputs"][label]), job["threads"], _WHAT)

    return keeping(kept, key, compute)
