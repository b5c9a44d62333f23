"""What `hfcompress bench` found, as a table that fits 100 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from ..measure.bench import Bench
from ..measure.result import LatencyRow, ModelResult

NONE = "–"
_WIDEST = 24  # of the first column: longer names of models go on in the next line
_COLUMNS = ("", "shape", "p50 ms", "p90 ms", "p99 ms", "load s", "same\nengine", "first in\nPyTorch")


def bench_rows(measured: Bench) -> Table:
    """Return a row per engine and shape under the name of each model; ratios are against the first model."""
    table = Table(show_edge=False, pad_edge=False)
    for index, name in enumerate(_COLUMNS):
        table.add_column(name, justify="right" if index else "left", max_width=None if index else _WIDEST,
                         overflow="fold", no_wrap=bool(index))  # fmt: skip
    first, *_ = measured.models
    ratios = {
        (label, s.engine, s.baseline_engine == s.engine, s.batch, s.length or s.image_size): s.ratio
        for label, rows in measured.speedup.items()
        for s in rows
    }
    for label, model in measured.models.items():
        table.add_section()
        table.add_row(f"[bold]{_plain(model.name)}[/]", f"{model.size_bytes / 1e6:.1f} MB")
        for row in model.latency:
            key = (row.batch, row.length or row.image_size)
            found = (ratios.get((label, row.engine, same, *key)) for same in (True, row.engine == "pytorch"))
            table.add_row(*_cells(row, model), *(NONE if r is None or label == first else f"{r:.2f}×" for r in found))
    table.caption, table.caption_justify = "\n".join(_notes(measured)), "left"
    return table


def _cells(row: LatencyRow, model: ModelResult) -> list[str]:
    times = (NONE if t is None else f"{t:.2f}" for t in (row.p50_ms, row.p90_ms, row.p99_ms))
    load = model.load_seconds.get(row.engine)
    return [row.engine, f"{row.batch}×{row.shape[1]}", *times, NONE if load is None else f"{load:.2f}"]


def _notes(measured: Bench) -> Iterator[str]:
    """Yield what each engine runs a model in, and how to read what is not plain."""
    for model in measured.models.values():
        for engine, note in model.runs_in.items():
            yield _plain(f"{model.name} in {engine}: {note}")
    passes = [row.passes or 0 for model in measured.models.values() for row in model.latency]
    if any(row.p99_ms is None for model in measured.models.values() for row in model.latency):
        yield f"p99: only of 100 timed passes or more (here {min(passes)} to {max(passes)})"
    yield "load: from opening the file to the first output in a new process, the engine's library imported before"


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
