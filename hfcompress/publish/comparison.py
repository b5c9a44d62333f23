"""Runs side by side: one row each of what it made smaller, faster and worse, from their results alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import MeasureError
from ..measure.result import Result, Speedup, read_result
from ..measure.unfinished import unfinished
from . import rows
from .best import best_on, otherwise, ratios
from .template import cell, linked, words

BUSY = 0.1  # of the processor time a stage was ready for; from here on its minutes are an upper bound

_MARKS = ("", "† ", "‡ ", "§ ")
_INSTRUCTIONS = {"avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "VNNI of AVX", "amx_int8": "AMX"}

_NEAR = 1e-3  # of a metric that is no share: the same model's on two machines


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
    """Return results by name, from run folders or from folders that hold several; MeasureError where there is none.

    A name is the folder's, and where two share it the shortest end of the path that tells them apart.
    """
    found: list[Path] = []
    for folder in folders:
        places = (
            [folder] if (folder / "result.json").is_file() else sorted(p.parent for p in folder.glob("*/result.json"))
        )
        if not places:
            raise MeasureError(
                unfinished(folder) or f"no result in {folder}: name run folders, or a folder that holds some"
            )
        found += [place.resolve() for place in places]
    return {_name(place, found): read_result(place) for place in found}


def _name(place: Path, others: Sequence[Path]) -> str:
    """Return the shortest end of a path that none of `others` has."""
    for depth in range(1, len(place.parts)):
        tail = place.parts[-depth:]
        if all(other == place or other.parts[-depth:] != tail for other in others):
            return "/".join(tail)
    return place.as_posix()


def alike(one: Result, other: Result) -> bool:
    """Return whether two runs compressed the same original and measured it on the same examples.

    The original is the same if its weight files are; of results that name no checksums, if its bytes, its parameters
    and, up to what another machine changes, its metric are.
    """
    if _measured_on(one) != _measured_on(other):
        return False
    before, after = one.baseline, other.baseline
    if before.checksums and after.checksums:
        return before.checksums == after.checksums
    if (before.size_bytes, before.parameters) != (after.size_bytes, after.parameters):
        return False
    engine = one.headline().engine
    values = [quality.value for quality in (before.quality_in(engine), after.quality_in(engine)) if quality]
    room = max(1 / one.headline().examples, _NEAR * max(map(abs, values), default=0.0))
    return max(values, default=0.0) - min(values, default=0.0) <= room


def _measured_on(result: Result) -> tuple[object, ...]:
    """Return what runs have to share, besides the original's weights, for their numbers to be comparable."""
    data, head = result.dataset, result.headline()
    return result.base_model.id, data.id, data.revision, data.config, data.split, head.metric, head.examples


def compare(results: Mapping[str, Result]) -> list[Comparison]:
    """Return a table per original, examples and metric; smallest file first."""
    groups: list[dict[str, Result]] = []
    for name, result in results.items():
        group = next((group for group in groups if all(alike(result, other) for other in group.values())), None)
        if group is None:
            groups.append(group := {})
        group[name] = result
    tables = [_comparison(group) for group in groups]
    titles = Counter(table.title for table in tables)
    return [
        replace(table, title=f"{table.title} ({_told_apart(group)})") if titles[table.title] > 1 else table
        for table, group in zip(tables, groups, strict=True)
    ]


def _told_apart(group: Mapping[str, Result]) -> str:
    """Say what a title leaves out of an original and its examples, where two tables would be called the same."""
    first = next(iter(group.values()))
    said = {"config": first.dataset.config, "revision": first.dataset.revision}
    words = [f"{name} {value}" for name, value in said.items() if value]
    weights = [f"weights {found[:8]}" for found in first.baseline.checksums.values()][:1]
    return ", ".join([*words, f"{first.headline().examples} examples", *weights])


def comparison_markdown(results: Mapping[str, Result], cards: Mapping[str, str] | None = None) -> str:
    """Return the tables as markdown; `cards` are the runs' cards as seen from the text, which rows then link to."""
    parts = []
    for table in compare(results):
        head = [
            f"**{table.title}**",
            "",
            f"| {' | '.join(table.columns)} |",
            "| --- | --- |" + " ---: |" * (len(table.columns) - 2),
        ]
        lines = [[cell(linked(row[0], cards[row[0]]) if cards else words(row[0])), *row[1:]] for row in table.rows]
        notes = ["", *table.notes] if table.notes else []
        parts.append("\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines), *notes]))
    return "\n\n".join(parts)


def _comparison(group: Mapping[str, Result]) -> Comparison:
    results = sorted(group.items(), key=lambda item: item[1].compressed.size_bytes)
    first = results[0][1]
    shapes = list({rows.shape_name(s): s for _, r in results for s in r.best_speedups()}.values())
    controls = any(result.control for result in group.values())
    place = words(f"{first.base_model.id} on {first.dataset.id}, {first.dataset.split}")
    title = f"{place}: {rows.si(first.baseline.size_bytes, 'B')}, {_baseline(first)}"
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
