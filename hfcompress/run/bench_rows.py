"""What `hfcompress bench` found, as a table that fits 100 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..measure.bench import Bench
from ..measure.energy import energy
from ..measure.environment import environment
from ..measure.result import LatencyRow, ModelResult

NONE = "–"
_WIDEST = 24  # of the first column: longer names of models go on in the next line
_COLUMNS = ("", "shape", "p50 ms", "p90 ms", "p99 ms", "load s", "same\nengine", "first in\nPyTorch")


def bench_rows(measured: Bench, threads: int | None = None) -> Table:
    """Return a row per engine and shape under the name of each model; ratios are against the first model."""
    table = Table(show_edge=False, pad_edge=False, title_justify="left", title_style="bold")
    table.title = None if threads is None else f"{threads} thread{'s' * (threads > 1)}"
    for index, name in enumerate(_COLUMNS):
        table.add_column(name, justify="right" if index else "left", max_width=None if index else _WIDEST,
                         overflow="fold", no_wrap=bool(index))  # fmt: skip
    for label, model in measured.models.items():
        table.add_section()
        table.add_row(f"[bold]{escape(model.name)}[/]", f"{model.size_bytes / 1e6:.1f} MB")
        for row in model.latency:
            ratios = _ratios(measured, label, row)
            table.add_row(*_cells(row, model), *(NONE if r is None else f"{r:.2f}×" for r in ratios))
    table.caption, table.caption_justify = "\n".join(_notes(measured)), "left"
    return table


def bench_records(measured: Mapping[int, Bench]) -> dict[str, Any]:
    """Return all rows as plain values, by threads, model, engine and shape, what was left out, and the environment."""
    rows, skipped = [], []
    for threads, bench in measured.items():
        for label, model in bench.models.items():
            for row in model.latency:
                same, first = _ratios(bench, label, row)
                rows.append({
                    "model": model.name, "size_bytes": model.size_bytes, "parameters": model.parameters,
                    "workload": row.key, **row.model_dump(), "ratio_same_engine": same, "ratio_first_in_pytorch": first,
                    "load_seconds": model.load_seconds.get(row.engine),
                    "peak_memory_bytes": model.peak_memory_bytes.get(row.engine),
                    "energy_j": model.energy_j.get(row.engine),
                    "runs_in": model.runs_in.get(row.engine),
                })  # fmt: skip
            skipped += [{"model": model.name, "engine": engine, "threads": threads, "why": why}
                        for engine, why in bench.skipped.get(label, {}).items()]  # fmt: skip
    waiting = max(bench.waiting for bench in measured.values())
    return {"rows": rows, "skipped": skipped, "waiting": waiting, "environment": environment(max(measured))}


def _ratios(measured: Bench, label: str, row: LatencyRow) -> tuple[float | None, float | None]:
    """Return how many times faster a row is than the first model in the same engine, and in PyTorch."""
    found = {
        s.baseline_engine: s.ratio
        for s in measured.speedup.get(label, ())
        if (s.engine, s.workload) == (row.engine, row.workload)
    }
    return found.get(row.engine), found.get("pytorch")


def _cells(row: LatencyRow, model: ModelResult) -> list[str]:
    times = (NONE if t is None else f"{t:.2f}" for t in (row.p50_ms, row.p90_ms, row.p99_ms))
    load = model.load_seconds.get(row.engine)
    return [
        row.engine,
        f"{row.batch}×{model.image_size}" if row.key.endswith("image") and model.image_size else row.short,
        *times,
        NONE if load is None else f"{load:.2f}",
    ]


def _notes(measured: Bench) -> Iterator[str]:
    """Yield what each engine runs a model in, and how to read what is not plain."""
    for model in measured.models.values():
        for engine, note in model.runs_in.items():
            yield escape(f"{model.name} in {engine}: {note}")
    for label, reasons in measured.skipped.items():
        for why in dict.fromkeys(reasons.values()):
            engines = ", ".join(engine for engine, reason in reasons.items() if reason == why)
            yield escape(f"{measured.models[label].name} not in {engines}: {why}")
    yield from _real_notes(measured)
    passes = [row.passes or 0 for model in measured.models.values() for row in model.latency if row.examples is None]
    if any(row.p99_ms is None and row.examples is None for model in measured.models.values() for row in model.latency):
        yield f"p99: only of 100 timed passes or more (here {min(passes)} to {max(passes)})"
    yield f"energy: {energy()}"
    for model in measured.models.values():
        spent = ", ".join(f"{engine} {1000 * found:.1f} mJ" for engine, found in model.energy_j.items())
        if spent:
            yield escape(f"{model.name}, a pass at the smallest shape: {spent}")
    yield "load: from opening the file to the first output in a new process, the engine's library imported before"


def _real_notes(measured: Bench) -> Iterator[str]:
    """Yield how the rows of real examples are to be read, and how long texts are as each model reads them."""
    real = {name: row for name, model in measured.models.items() for row in model.latency if row.examples is not None}
    for row in list(real.values())[:1]:
        yield f"{row.short}: one at a time, as they come; percentiles are over {row.kind}, ratios of total times"
    for name, row in real.items():
        if row.tokens:
            least, middle, most = row.tokens
            yield escape(f"{measured.models[name].name} reads them as {least} to {most} tokens, median {middle}")
