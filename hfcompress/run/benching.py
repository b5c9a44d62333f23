"""`hfcompress bench`: models against each other, and our training step against the stock Trainer's."""

from __future__ import annotations

import copy
import importlib.util
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer_callback import ProgressCallback

from ..core.errors import LifecycleError, MeasureError, RecipeError
from ..core.scratch import scratch_folder
from ..export.runtime import ENGINES, Source, require_engine
from ..measure.bench import Bench, Settings, bench, stale_engines
from ..measure.onnx_file import OnnxFile, read_onnx
from ..measure.process import part
from ..measure.workloads import Shape, checkpoint_spec
from ..recipe.load import LoadedRecipe
from ..recipe.shape import split_shape
from ..train.allocator import keep_freed_memory
from ..train.stages import StageMethods, stage_methods
from ..train.teacher import Teacher
from ..train.trainer import HFCompressTrainer
from .calibrating import calibrated
from .inspect import auto_class_of, checkpoint_of, own_pixels
from .measuring import base_name
from .real_lengths import real_of_models
from .reporter import Reporter
from .setup import Setup, open_recipe
from .training import training_arguments

STEPS, WARM_UP = 12, 3
EXAMPLES = 100
_STEPS = {
    "stock": "stock Trainer",
    "teacher": "one teacher forward",
    "ours": "HFCompressTrainer",
    "cached": "HFCompressTrainer, teacher cached",
}


def bench_models(
    models: list[str],
    shapes: list[str],
    engines: list[str],
    threads: list[int],
    rounds: int,
    reporter: Reporter,
    calibration: LoadedRecipe | None = None,
    data: LoadedRecipe | None = None,
    examples: int = EXAMPLES,
) -> dict[int, Bench]:
    """Measure models against the first of them, once for each number of threads: checkpoints, or ONNX files.

    `calibration`: the recipe from whose training split exports get the activation grids a checkpoint lacks. `data`:
    that from whose evaluation split so many `examples` are timed as they come, one at a time. Engines that are not
    named are those installed, and one that a model cannot be exported to is left out of it.
    """
    names = _names(models)
    models = list(names)
    named, engines = bool(engines), engines or default_engines(calibrated=calibration is not None)
    for name in engines:
        require_engine(name)
    with scratch_folder() as scratch, reporter.bar("measuring") as progress:
        sources = {}
        for index, model in enumerate(models):
            place = Path(scratch) / str(index)
            sources[model] = calibrated(_source(model), engines, calibration, place)
        settings = Settings("AutoModel", _shapes(shapes, sources[models[0]]), tuple(engines), rounds=rounds,
                            real=real_of_models(sources, data, examples, Path(scratch)) if data else {},
                            lenient=not named)  # fmt: skip
        sources = {m: _placed(s, settings, Path(scratch) / str(i)) for i, (m, s) in enumerate(sources.items())}
        found = {}
        counts = list(dict.fromkeys(threads)) or [torch.get_num_threads()]
        for index, count in enumerate(counts):
            now = part(progress, index, len(counts))
            found[count] = bench(sources, replace(settings, threads=count), names=names, on_progress=now)
    return found


def _names(models: list[str]) -> dict[str, str]:
    """Return by checkpoint what a model is called: the last part of what was given, or all where others end alike."""
    ends = Counter(map(base_name, models))
    return {checkpoint_of(m): base_name(m) if ends[base_name(m)] == 1 else m for m in models}


def _shapes(given: list[str], source: Source) -> list[Shape]:
    """Return the workloads given, or usual ones of the kind the model takes, as far as a file leaves them open."""
    spec = checkpoint_spec(source, "AutoModel")
    if given:
        return [parse_shape(text, is_image=spec.is_image) for text in given]
    fixed = read_onnx(Path(source.checkpoint)) if source.is_onnx else OnnxFile(spec)
    if spec.is_image:
        return list(dict.fromkeys(Shape(fixed.batch or batch) for batch in (1, 16)))
    usual = ((1, 32), (8, 128))
    return list(dict.fromkeys(Shape(fixed.batch or batch, fixed.length or length) for batch, length in usual))


def parse_shape(text: str, *, is_image: bool) -> Shape:
    """Turn '8x128' into a workload: tokens for a text model, pixels for an image model."""
    if (found := split_shape(text)) is None:
        form = "BATCHxPIXELS, such as 1x224" if is_image else "BATCHxLENGTH, such as 8x128"
        raise RecipeError(f"--shape {text}: write it as {form}")
    batch, size = found
    return Shape(batch, None if is_image else size, size if is_image else None)


def default_engines(*, calibrated: bool) -> list[str]:
    """Return the engines that are installed and start at once; with `calibrated` also those that need examples."""
    return [
        name
        for name, one in ENGINES.items()
        if (calibrated or not one.calibrated) and not one.compiles and all(map(importlib.util.find_spec, one.packages))
    ]


def _source(model: str) -> Source:
    if model.endswith(".onnx"):
        if not Path(model).is_file():
            raise MeasureError(f"{model} is not a file")
        return Source(model)
    auto_class = auto_class_of(model)
    return Source(model, auto_class=auto_class, image_size=own_pixels(model, auto_class))


def _placed(source: Source, settings: Settings, scratch: Path) -> Source:
    """Use the exports that lie in the model's folder; otherwise make them in a scratch folder."""
    if source.is_onnx or (Path(source.checkpoint).is_dir() and not stale_engines(source, settings)):
        return source
    return replace(source, exports=str(scratch))


def training_table(loaded: LoadedRecipe, reporter: Reporter, *, rounds: int) -> Table:
    """Time a step of HFCompressTrainer, of the stock Trainer, and one teacher forward on the same batches.

    Rounds alternate; each starts from the same weights and sees the same examples. The budget is 1.10 x (stock step +
    one teacher forward). Where the recipe has a `teacher_cache`, a step that looks the teacher up is timed too, not the
    one run of the teacher that fills the cache; its budget is 1.05 x the stock step.
    """
    keep_freed_memory()
    setup = open_recipe(loaded)
    index = next((i for i, s in enumerate(loaded.recipe.stages) if s.train is not None), None)
    if index is None:
        raise LifecycleError("this recipe trains nothing: there is no step to time")
    stage = stage_methods(loaded.recipe.stages[index], f"stages.{index}")
    times: dict[str, list[float]] = {name: [] for name in _STEPS}
    with reporter.bar("timing training steps") as progress, scratch_folder() as scratch:
        for done in range(rounds):
            for name, seconds in _training_round(setup, stage, Path(scratch)):
                times[name].append(seconds)
            progress("timing training steps", (done + 1) / rounds)
    return _training_rows(times)


def _training_round(setup: Setup, stage: StageMethods, scratch: Path) -> Iterator[tuple[str, float]]:
    stock = _trainer(setup, stage, scratch, Trainer)
    yield "stock", _step_seconds(stock)
    yield "teacher", _teacher_seconds(stock, setup.model)
    configs = [m.config for m in stage.methods]
    yield "ours", _step_seconds(_trainer(setup, stage, scratch, HFCompressTrainer, recipe=configs))
    if setup.recipe.teacher_cache is not False:
        cache = {"teacher_cache": setup.recipe.teacher_cache, "processing_class": setup.processor}
        cached: Any = _trainer(setup, stage, scratch, HFCompressTrainer, recipe=configs, **cache)
        note = cached.open_teacher_cache()
        if cached.cached is None:
            raise LifecycleError(str(note))
        yield "cached", _step_seconds(cached)


def _trainer(setup: Setup, stage: StageMethods, scratch: Path, cls: type[Trainer], **more: Any) -> Trainer:
    fixed = {"max_steps": STEPS, "save_strategy": "no", "logging_strategy": "no", "eval_strategy": "no"}
    args = training_arguments({**(stage.train or {}), **fixed}, scratch, setup.recipe.seed)
    trainer = cls(
        model=copy.deepcopy(setup.model),
        args=args,
        train_dataset=setup.train_for(stage.methods),
        data_collator=setup.training_collator,
        **more,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


class _Clock(TrainerCallback):
    """Notes the end of each optimizer step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def _step_seconds(trainer: Trainer) -> float:
    """Return the mean time between the ends of steps, data loading included, without the first ones."""
    clock = _Clock()
    trainer.add_callback(clock)
    trainer.train()
    if len(clock.ends) <= WARM_UP + 1:
        raise MeasureError(f"the training split is too small to time {STEPS} steps")
    return (clock.ends[-1] - clock.ends[WARM_UP]) / (len(clock.ends) - 1 - WARM_UP)


def _teacher_seconds(trainer: Trainer, model: nn.Module) -> float:
    """Return the mean time of the teacher's forward pass over as many batches of the same kind."""
    teacher = Teacher(copy.deepcopy(model), trainer.args.device)
    torch.manual_seed(trainer.args.seed)
    spent = []
    for batch, _ in zip(trainer.get_train_dataloader(), range(STEPS), strict=False):
        started = time.perf_counter()
        for _ in range(trainer.args.gradient_accumulation_steps):
            teacher(batch, frozenset())
        spent.append(time.perf_counter() - started)
    return statistics.mean(spent[WARM_UP:])


def _training_rows(times: dict[str, list[float]]) -> Table:
    table = Table(show_edge=False)
    for name in ("per step", "median", "spread"):
        table.add_column(name, justify="left" if name == "per step" else "right")
    for name, label in _STEPS.items():
        if ms := [seconds * 1000 for seconds in times[name]]:
            table.add_row(label, f"{statistics.median(ms):.1f} ms", f"{min(ms):.0f}–{max(ms):.0f} ms")
    live = [stock + teacher for stock, teacher in zip(times["stock"], times["teacher"], strict=True)]
    table.add_row(f"{_STEPS['ours']} / (stock + teacher)", *_ratio(times["ours"], live))
    if times["cached"]:
        table.add_row(f"{_STEPS['cached']} / stock", *_ratio(times["cached"], times["stock"]))
    return table


def _ratio(times: list[float], budget: list[float]) -> tuple[str, str]:
    """Return the median and the spread over rounds of `times` against `budget`."""
    ratios = [ours / theirs for ours, theirs in zip(times, budget, strict=True)]
    return f"{statistics.median(ratios):.3f}×", f"{min(ratios):.3f}–{max(ratios):.3f}×"
