"""Runs side by side: one row each of what it made smaller, faster and worse, from their results alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import MeasureError
from ..measure.result import Result, Speedup, read_result
from . import rows
from .best import best_on, otherwise, ratios

BUSY = 0.1  # of the processor time a stage was ready for; from here on its minutes are an upper bound

_MARKS = ("", "† ", "‡ ", "§ ")
_INSTRUCTIONS = {"avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "VNNI of AVX", "amx_int8": "AMX"}

Key = tuple[str, str, str]  # what runs have to share for their numbers to be comparable: model, data, metric


@dataclass(frozen=True)
class Comparison:
    """Runs of one model on one data set, as a table: `title`, the names of columns, and a row of cells per run.

    `notes` say what the marks of times mean that were taken on another processor than most.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def find_results(folders: list[Path]) -> dict[str, Result]:
    """Return results by name, from run folders or from folders that hold several; MeasureError where there is none."""
    found: dict[str, Result] = {}
    for folder in folders:
        places = (
            [folder] if (folder / "result.json").is_file() else sorted(p.parent for p in folder.glob("*/result.json"))
        )
        if not places:
            raise MeasureError(f"no result in {folder}: name run folders, or a folder that holds some")
        found |= {place.resolve().name: read_result(place) for place in places}
    return found


def compare(results: Mapping[str, Result]) -> list[Comparison]:
    """Return a table per model, data set and metric; smallest file first."""
    groups: dict[Key, dict[str, Result]] = {}
    for name, result in results.items():
        key = (result.base_model.id, f"{result.dataset.id}, {result.dataset.split}", result.headline().metric)
        groups.setdefault(key, {})[name] = result
    return [_comparison(key, group) for key, group in groups.items()]


def comparison_markdown(results: Mapping[str, Result], link: str | None = None) -> str:
    """Return the tables as markdown; `link` is the folder, as seen from the text, that holds a card per run."""
    parts = []
    for table in compare(results):
        head = [
            f"**{table.title}**",
            "",
            f"| {' | '.join(table.columns)} |",
            "| --- | --- |" + " ---: |" * (len(table.columns) - 2),
        ]
        lines = [[f"[{row[0]}]({link}/{row[0]}/README.md)" if link else row[0], *row[1:]] for row in table.rows]
        notes = ["", *table.notes] if table.notes else []
        parts.append("\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines), *notes]))
    return "\n\n".join(parts)


def _comparison(key: Key, group: Mapping[str, Result]) -> Comparison:
    results = sorted(group.items(), key=lambda item: item[1].compressed.size_bytes)
    first = results[0][1]
    shapes = list({rows.shape_name(s): s for _, r in results for s in r.best_speedups()}.values())
    controls = any(result.control for result in group.values())
    title = f"{key[0]} on {key[1]}: {rows.si(first.baseline.size_bytes, 'B')}, {_baseline(first)}"
    columns = ["run", "methods", "weight files", first.headline().metric]
    columns += ["control"] * controls + [rows.shape_name(shape) for shape in shapes] + ["minutes"]
    marks = machine_marks(list(group.values()))
    notes = [f"{mark.strip()} Timed on {machine}." for machine, mark in marks.items() if mark]
    if notes:
        notes.append(f"The others on {next(machine for machine, mark in marks.items() if not mark)}.")
    lines = [_row(name, result, shapes, controls, marks) for name, result in results]
    return Comparison(title, columns, lines, [" ".join(notes)] if notes else [])


def machine_marks(results: Sequence[Result]) -> dict[str, str]:
    """Return the processors that results were timed on, each with the mark of its times; that of most has none.

    Ratios to the original hold on one processor only: one with int8 products gains more from int8.
    """
    timed = Counter(machine_of(result) for result in results if result.speedup)
    return {machine: _MARKS[min(i, len(_MARKS) - 1)] for i, (machine, _) in enumerate(timed.most_common())}


def machine_of(result: Result) -> str:
    """Return the processor, and which of the instructions that matter here it has."""
    known = result.environment
    flags = [name for flag, name in _INSTRUCTIONS.items() if flag in known.get("cpu_flags", ())]
    return f"{known.get('cpu', 'a processor not named')} ({', '.join(flags) or 'neither AVX-512 nor VNNI'})"


def _row(name: str, result: Result, shapes: list[Speedup], controls: bool, marks: Mapping[str, str]) -> list[str]:
    methods = dict.fromkeys(f"`{m}`" for stage in result.stages for m in stage.methods)
    size = f"{rows.si(result.compressed.size_bytes, 'B')}, {rows.ratio(result.size_ratio)}"
    control = [rows.metric(result, result.control.value) if result.control else rows.NONE] * controls
    mark = marks.get(machine_of(result), "")
    times = [time if time == rows.NONE else f"{mark}{time}" for time in (_time(result, shape) for shape in shapes)]
    return [name, ", ".join(methods), size, _quality(result), *control, *times, minutes([result])]


def _baseline(result: Result) -> str:
    before = result.baseline.quality_in(result.headline().engine)
    return f"{result.headline().metric} {rows.metric(result, before.value)}" if before else result.headline().metric


def _quality(result: Result) -> str:
    head = result.headline()
    after = result.compressed.quality_in(head.engine)
    value = rows.metric(result, after.value) if after else rows.NONE
    low, high = (rows.signed(result, bound) for bound in (head.low, head.high))
    return f"{value}, {rows.signed(result, head.value)} ({low} to {high})"


def _time(result: Result, shape: Speedup) -> str:
    """Return the time in the best engine, and how many times faster: than PyTorch as found, and like for like.

    Then what the metric is in that engine, where it is not what the row says: int8 kernels round activations too.
    """
    best = best_on(result, shape)
    after = rows.find_latency(result.compressed, best.engine, best) if best else None
    if best is None or after is None:
        return rows.NONE
    times = f"{rows.milliseconds(after.time_ms)}, {ratios([result], [best])}"
    return times + otherwise([result], [best.engine])


def minutes(results: Sequence[Result]) -> str:
    """Return the minutes compressing took, the mean of these runs; an upper bound where the machine was busy."""
    seconds = sum(stage.seconds for result in results for stage in result.stages) / len(results)
    busy = any((stage.waiting or 0.0) > BUSY for result in results for stage in result.stages)
    return f"{'≤ ' if busy else ''}{seconds / 60:.1f}"
