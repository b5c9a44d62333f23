"""The code a card shows for loading its model; the very text that is executed before anything is published."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from ..export.files import beside
from ..export.runtime import ENGINES
from ..measure.environment import OPTIMUM
from ..measure.result import LatencyRow, ModelResult, Result
from ..train.tasks import tasks
from . import rows
from .template import render


def loading_snippet(result: Result, location: str, revision: str | None = None) -> str:
    """Return a program that loads the model from `location`, a Hub id or a folder, and prints one prediction.

    `revision` is the branch on the Hub, where it is not the main one. The program leaves `model` and `logits`,
    (1, labels) of a classifier, (1, tokens, vocabulary) of a language model, in its namespace.
    """
    image = takes_images(result)
    processor = "AutoImageProcessor" if image else "AutoTokenizer"
    return render(
        "load.py.jinja",
        result=result,
        location=location,
        revision=revision,
        image=image,
        classes=[result.auto_class, processor],
        prediction=prediction(result),
    )


def onnx_snippet(result: Result, location: str, *, hub: bool, revision: str | None = None) -> str | None:
    """Return a program that runs the fastest ONNX file of the compressed model, or None when there is none.

    `hub` says whether `location` is a Hub id, `revision` is its branch. The program leaves `logits`, a numpy array, in
    its namespace. Where optimum's ONNX Runtime classes could be imported when the run was made, a comment shows their
    call too.
    """
    file = fastest_onnx(result.compressed)
    if file is None:
        return None
    image = takes_images(result)
    return render(
        "load_onnx.py.jinja",
        file=file,
        weights=_files(result.compressed, file)[1:],
        ort_class=result.auto_class.replace("Auto", "ORT", 1) if result.environment.get(OPTIMUM) else None,
        location=location,
        revision=revision,
        hub=hub,
        image=image,
        processor="AutoImageProcessor" if image else "AutoTokenizer",
    )


def fastest_onnx(model: ModelResult) -> str | None:
    """Return the ONNX file of the engine with the least geometric mean of its median times.

    Only engines timed at as many shapes as any are compared, and none that answers worse than PyTorch; where nothing
    was timed it is the smallest file.
    """
    files = {name: _files(model, name) for name in model.exports if name.endswith(".onnx")}
    sizes = {name: sum(model.exports[part] for part in parts) for name, parts in files.items()}
    times: dict[str, list[float]] = {}
    for file, row in _timed(model):
        if file in sizes:
            times.setdefault(file, []).append(math.log(row.time_ms))
    most = max(map(len, times.values()), default=0)
    means = {file: sum(logs) / most for file, logs in times.items() if len(logs) == most}
    return min(means or sizes, key=lambda name: (means.get(name, 0), sizes[name], name), default=None)


def _files(model: ModelResult, file: str) -> list[str]:
    """Return an ONNX file and, where its weights were too many for it, the one beside it that holds them."""
    weights = beside(Path(file)).as_posix()
    return [file, *([weights] if weights in model.exports else [])]


def fastest_where(model: ModelResult) -> str:
    """Say at what the file of `fastest_onnx` is the fastest of the ONNX files: at all that was timed, or where."""
    best: dict[tuple[int | str | None, ...], tuple[str, LatencyRow]] = {}
    for file, row in _timed(model):
        known = best.setdefault(row.workload, (file, row))
        best[row.workload] = (file, row) if row.time_ms < known[1].time_ms else known
    if not best:
        return "the smallest of the ONNX files; none was timed"
    fastest = "the fastest of the ONNX files"
    if any(model.strays_in(name) for name, engine in ENGINES.items() if str(engine.file).endswith(".onnx")):
        fastest += " that answer as PyTorch does"
    won = [rows.where(row) for file, row in best.values() if file == fastest_onnx(model)]
    if len(won) == len(best):
        return fastest
    alone = f", and {' and '.join(won)}" if won else ""
    return f"{fastest} over all that was timed (geometric mean){alone}"


def _timed(model: ModelResult) -> Iterator[tuple[str, LatencyRow]]:
    """Yield each time of an ONNX file, with the file, but for engines that answer worse than PyTorch."""
    for row in model.latency:
        file = str(ENGINES[row.engine].file) if row.engine in ENGINES else ""
        if file.endswith(".onnx") and not model.strays_in(row.engine):
            yield file, row


def takes_images(result: Result) -> bool:
    """Return whether the model's input is an image."""
    return result.task in tasks() and tasks()[result.task].main_input == "pixel_values"


def prediction(result: Result) -> str:
    """Return what the task's logits say: "label", "next token", or "logits" where that is not known."""
    return tasks()[result.task].prediction if result.task in tasks() else "logits"
