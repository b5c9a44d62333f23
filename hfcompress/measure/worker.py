"""One engine in one process: it opens the models of ``worker.py job.json`` and then answers commands, JSON a line.

Started as a script, so that the package's own import, which brings torch along, neither slows the start nor counts in
the peak memory of engines that do without.
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

if __name__ == "__main__" and "hfcompress" not in sys.modules:
    _package = types.ModuleType("hfcompress")  # known, with its folder, but not executed
    _package.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["hfcompress"] = _package

import numpy as np

from hfcompress.core.machine import waited_ns
from hfcompress.export.runtime import Run, Source, engine, open_engine
from hfcompress.measure.batches import read_batches
from hfcompress.ops.reductions import REDUCTIONS

Report = Callable[[float], None]
Batch = Mapping[str, np.ndarray]

PAUSE_S = 0.05
STABLE = 0.1  # warm-up ends when the last three times lie within this share of each other


class Worker:
    """The models of a job, opened in its engine, and the batches each of them reads."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job = job
        sources = {label: Source(**source) for label, source in job["models"].items()}
        for source in sources.values():
            engine(job["engine"]).imports(source, job["auto_class"])
        self._started = time.perf_counter()
        self.runs = {
            label: open_engine(
                job["engine"], source, job["threads"], job["auto_class"], any_shape=job.get("any_shape", False)
            )
            for label, source in sources.items()
        }
        self._opened = time.perf_counter()

    def warm(self, report: Report, shape: int, seconds: float) -> dict[str, float]:
        """Return each model's time in ms on batch `shape` once it is stable, or after `seconds`."""
        batches = self._batches(shape)
        return {label: warm_up(run, batches[label], seconds / len(self.runs)) for label, run in self.runs.items()}

    def round(self, report: Report, shape: int, passes: Mapping[str, int]) -> dict[str, Any]:
        """Return the times in ms of each model's `passes` in turn, and the share of the threads' time spent waiting.

        A pass before them is not counted: it brings the weights back into the caches that another model used.
        """
        batches = self._batches(shape)

        def timed(label: str, run: Run) -> list[float]:
            run(batches[label])
            return [_time(run, batches[label]) for _ in range(passes[label])]

        return self._in_turn(timed)

    def examples(self, report: Report) -> dict[str, Any]:
        """Return each model's times in ms on every batch in turn, and the share of the threads' time spent waiting.

        The first batch is run once before, uncounted, for the caches. All lie in memory before the clock starts.
        """
        files = self.job["inputs"]
        read = {file: list(read_batches(file)) for file in {files[label] for label in self.runs}}

        def timed(label: str, run: Run) -> list[float]:
            batches = read[files[label]]
            run(batches[0])
            return [_time(run, batch) for batch in batches]

        return self._in_turn(timed)

    def _in_turn(self, timed: Callable[[str, Run], list[float]]) -> dict[str, Any]:
        """Time one model after the other; the pause lets the threads of the one before fall asleep.

        They wait for work in a loop: else they hold a core while the next one starts, whose times grow by it.
        """
        times: dict[str, list[float]] = {}
        spent = waited = 0
        for label, run in self.runs.items():
            time.sleep(PAUSE_S)
            started, before = time.perf_counter_ns(), waited_ns()
            times[label] = timed(label, run)
            spent, waited = spent + time.perf_counter_ns() - started, waited + waited_ns() - before
        return {"times_ms": times, "waiting": waited / (spent * self.job["threads"])}

    def load(self, report: Report) -> float:
        """Return the seconds from opening the models, their libraries imported, to the first output on batch 0."""
        batches, started = self._batches(0), time.perf_counter()
        for label, run in self.runs.items():
            run(batches[label])
        return self._opened - self._started + time.perf_counter() - started

    def memory(self, report: Report) -> int:
        """Return the peak resident memory in bytes of this process after a pass over every batch."""
        for label, run in self.runs.items():
            for batch in read_batches(self.job["inputs"][label]):
                run(batch)
        return peak_bytes()

    def spend(self, report: Report, shape: int, seconds: float) -> int:
        """Run every model on batch `shape` for so many seconds, and return how many passes that were."""
        batches, passes, started = self._batches(shape), 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for label, run in self.runs.items():
                run(batches[label])
                passes += 1
        return passes

    def predict(self, report: Report, output: str, count: int, reduction: str = "logits") -> int:
        """Write what is kept of the only model's logits on all batches, `count` of them, to `output`; return how much.

        Each batch is reduced before the next one runs: whole vocabularies for every token would not fit in memory.
        """
        ((label, run),) = self.runs.items()
        parts = []
        for batch in read_batches(self.job["inputs"][label]):
            parts.append(REDUCTIONS[reduction](run(batch), batch))
            report(len(parts) / count)
        kept = np.concatenate(parts)
        np.save(output, kept, allow_pickle=False)
        return len(kept)

    def _batches(self, index: int) -> dict[str, Batch]:
        """Return the batch of this number by model, one in memory for all that read the same file."""
        files = self.job["inputs"]
        read = {file: next(islice(read_batches(file), index, None)) for file in set(files.values())}
        return {label: read[file] for label, file in files.items()}


def warm_up(run: Run, batch: Batch, seconds: float) -> float:
    """Run until three times in a row agree, or `seconds` have passed, and return their median in ms.

    The first pass stands before both: an engine that compiles does it then, however long it takes. So does a later one
    that alone took more than `seconds`, and the next less than half of it.
    """
    run(batch)
    last: list[float] = []
    started = time.perf_counter()
    while True:
        took = _time(run, batch)
        if last and last[-1] > max(1000 * seconds, 2 * took):
            last, started = [], time.perf_counter()
        last = [*last[-2:], took]
        stable = len(last) == 3 and max(last) <= (1 + STABLE) * min(last)
        if stable or (time.perf_counter() - started > seconds and len(last) >= 2):
            return float(np.median(last))


def peak_bytes() -> int:
    """Return this process's peak resident memory; on Linux `ru_maxrss` may show the parent's, kept across exec."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _time(run: Run, batch: Batch) -> float:
    started = time.perf_counter_ns()
    run(batch)
    return (time.perf_counter_ns() - started) / 1e6


COMMANDS: dict[str, Callable[..., Any]] = {
    "warm": Worker.warm,
    "round": Worker.round,
    "examples": Worker.examples,
    "load": Worker.load,
    "memory": Worker.memory,
    "spend": Worker.spend,
    "predict": Worker.predict,
}


def main(path: str) -> None:
    """Answer the commands on stdin until it ends; whatever libraries print goes to stderr, only answers to stdout."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    worker = Worker(json.loads(Path(path).read_text(encoding="utf-8")))
    for line in sys.stdin:
        command = json.loads(line)
        do = COMMANDS[command.pop("do")]
        say(result=do(worker, lambda fraction: say(fraction=fraction), **command))


if __name__ == "__main__":
    main(sys.argv[1])
