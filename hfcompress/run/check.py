"""`hfcompress card --check`: what a result claims of its model, measured again where the model lies now."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ..checkpoint import load_model
from ..core.errors import ExportError, HFCompressError, MeasureError
from ..export.runtime import Source, engine, require_engine
from ..measure.findings import BUSY
from ..measure.latency import measure_latency, speedups
from ..measure.real import measure_real
from ..measure.result import Quality, Result, Speedup, read_result
from ..measure.size import checksum, count_parameters
from ..measure.workloads import Shape
from ..publish.rows import engine_name, metric, ratio, shape_name
from .claimed import read_again
from .folder import RunFolder
from .verify import evaluate_again

BAND = 0.25  # a ratio of times holds if it is found within so much of itself
ROUNDS, SECONDS = 5, 2.0
SAME = 1e-3  # a metric that is no share may differ by so much of itself, between machines


@dataclass(frozen=True)
class Check:
    """One claim: what the result says, what was found, and whether that agrees; None: it could not be looked at."""

    name: str
    claimed: str
    found: str
    holds: bool | None


def check_card(
    folder: Path,
    *,
    time: bool = True,
    baseline: str | None = None,
    overrides: Sequence[str] = (),
    band: float = BAND,
) -> list[Check]:
    """Measure again what the result in `folder` claims: files, parameters, the metric, and ratios of times.

    `folder` is a run folder, or a model's with the result beside its weights, as a push leaves it; for that one the
    evaluation split is read again from where the result's recipe says, or `overrides` of that recipe. `baseline` is the
    original, where it cannot be found. Raises MeasureError when there is no result.
    """
    place = RunFolder(folder)
    model = place.model if (place.model / "config.json").is_file() else folder
    result = read_result(folder)
    found = [*_files(result, model), *_counts(result, model)]
    if any(line.holds is False and line.name == _LOADS for line in found):
        return found
    found += _qualities(result, place, model, overrides)
    if time:
        found += _times(result, place, model, baseline, band)
    return found


def check_table(found: list[Check], title: str) -> Table:
    """Return the claims as a table for the terminal, those that do not hold marked."""
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for name in ("", "claimed", "found", ""):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    marks = {True: "[green]holds[/]", False: "[red]differs[/]", None: "[yellow]not checked[/]"}
    for line in found:
        table.add_row(line.name, line.claimed, line.found, marks[line.holds])
    return table


_LOADS = "loads"


def _files(result: Result, model: Path) -> Iterator[Check]:
    for name, size in {**result.compressed.files, **result.compressed.exports}.items():
        file = model / name
        now = file.stat().st_size if file.is_file() else None
        yield Check(f"bytes of {name}", f"{size:,}", "missing" if now is None else f"{now:,}", now == size)
    total = sum(result.compressed.files.values())
    yield Check("bytes of all weights", f"{result.compressed.size_bytes:,}", f"{total:,} by file",
                total == result.compressed.size_bytes)  # fmt: skip
    for name, wanted in result.compressed.checksums.items():
        file = model / name
        found = checksum(file) if file.is_file() else "missing"
        yield Check(f"SHA-256 of {name}", wanted[:12], found[:12], found == wanted)


def _counts(result: Result, model: Path) -> Iterator[Check]:
    try:
        parameters, nonzeros = count_parameters(load_model(model, result.auto_class, dtype=result.dtype))
    except HFCompressError as error:
        yield Check(_LOADS, "yes", str(error).splitlines()[0], False)
        return
    small = result.compressed
    yield Check("parameters", f"{small.parameters:,}", f"{parameters:,}", parameters == small.parameters)
    yield Check("parameters that are not zero", f"{small.nonzeros:,}", f"{nonzeros:,}", nonzeros == small.nonzeros)


def _qualities(result: Result, place: RunFolder, model: Path, overrides: Sequence[str]) -> list[Check]:
    if place.batches.is_file() and place.labels.is_file():
        return [_quality(result, place, model, wanted) for wanted in result.compressed.quality]
    with tempfile.TemporaryDirectory(prefix="hfcompress-") as scratch:
        again = RunFolder(Path(scratch))
        try:
            read_again(result, model, overrides, again)
        except HFCompressError as error:
            why = str(error).splitlines()[0]
            return [Check(*_claim(result, wanted), why, None) for wanted in result.compressed.quality]
        return [_quality(result, again, model, wanted) for wanted in result.compressed.quality]


def _claim(result: Result, wanted: Quality) -> tuple[str, str]:
    return f"{wanted.metric}, {engine_name(wanted.engine)}", metric(result, wanted.value)


def _quality(result: Result, place: RunFolder, model: Path, wanted: Quality) -> Check:
    name, claimed = _claim(result, wanted)
    try:
        require_engine(wanted.engine)
    except ExportError as error:
        return Check(name, claimed, str(error), None)
    try:
        value = evaluate_again(place, result, model, wanted)
    except HFCompressError as error:
        return Check(name, claimed, str(error).splitlines()[0], False)
    share = 0 <= wanted.value <= 1
    allowed = 1 / wanted.examples if share else SAME * abs(wanted.value)  # one example may fall to the other side
    return Check(name, claimed, metric(result, value), abs(value - wanted.value) <= allowed + 1e-9)


def _times(result: Result, place: RunFolder, model: Path, baseline: str | None, band: float) -> list[Check]:
    """Time both models again, in every engine whose files both have, and compare the ratios with those claimed."""
    claims = [row for row in result.speedup if row.engine == row.baseline_engine]
    found = baseline or _baseline(result, place)
    if found is None:
        why = "the original was not found: name it with --baseline"
        return [Check(_ratio_name(row), ratio(row.ratio), why, None) for row in claims]
    original = Source(found, str(place.baseline_exports), dtype=result.dtype, image_size=result.baseline.image_size)
    small = Source(str(model), dtype=result.dtype, image_size=result.compressed.image_size)
    runnable = [name for name in dict.fromkeys(row.engine for row in claims) if _runs(name, original, small)]
    again, busy = _timed_again(result, place, {"original": original, "compressed": small}, runnable, claims)
    return [_ratio(row, again, band, busy) for row in claims]


def _timed_again(
    result: Result, place: RunFolder, models: dict[str, Source], engines: list[str], claims: list[Speedup]
) -> tuple[list[Speedup], bool]:
    """Return the ratios as they are now, where they can be taken, and whether the machine was busy."""
    shapes = {Shape(row.batch, row.length, row.image_size): None for row in claims if row.examples is None}
    given: dict[str, Any] = {
        "auto_class": result.auto_class, "threads": int(result.environment.get("threads", 1)),
        "rounds": ROUNDS, "seconds": SECONDS,
    }  # fmt: skip
    timed = []
    if engines and shapes:
        timed.append(measure_latency(models, engines, list(shapes), seed=result.seed, **given))
    if engines and any(row.examples is not None for row in claims) and place.real.is_file():
        own = place.baseline_real if place.baseline_real.is_file() else place.real
        timed.append(measure_real(models, engines, {"original": own, "compressed": place.real}, **given))
    found = [ratio for one in timed for ratio in speedups(one.rows["original"], one.rows["compressed"])]
    return found, any(one.waiting > BUSY for one in timed)


def _ratio(claim: Speedup, again: list[Speedup], band: float, busy: bool) -> Check:
    """Compare one ratio; what a machine gives while others use it speaks neither for nor against the claim."""
    same = (row for row in again if row.model_copy(update={"ratio": claim.ratio}) == claim)
    found = next((row.ratio for row in same), None)
    if found is None:
        missing = "no files of this engine for both models" + " or no examples" * (claim.examples is not None)
        return Check(_ratio_name(claim), ratio(claim.ratio), missing, None)
    holds = abs(found - claim.ratio) <= band * claim.ratio
    claimed = f"{ratio(claim.ratio)} ± {band:.0%}"
    if busy:
        return Check(_ratio_name(claim), claimed, f"{ratio(found)}, on a busy machine", None)
    return Check(_ratio_name(claim), claimed, ratio(found), holds)


def _ratio_name(row: Speedup) -> str:
    return f"times faster, {shape_name(row)}, {engine_name(row.engine)}"


def _runs(name: str, *sources: Source) -> bool:
    try:
        require_engine(name)
        file = engine(name).file
        return all(file is None or source.export(file).is_file() for source in sources)
    except (ExportError, MeasureError):
        return False


def _baseline(result: Result, place: RunFolder) -> str | None:
    """Return the original: fine-tuned in the run's folder, where the plan found it, or by its Hub id."""
    if (place.baseline / "config.json").is_file():
        return str(place.baseline)
    try:
        planned = str(json.loads((place.path / "plan.json").read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError):
        planned = ""
    if planned and (Path(planned) / "config.json").is_file():
        return planned
    return result.base_model.id if result.base_model.hub else None
