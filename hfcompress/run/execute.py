"""Executing a recipe, from the model named to the card."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint import is_stock, load_model, release_, save_checkpoint
from ..checkpoint.memory import weight_bytes
from ..checkpoint.structure import read_structure
from ..core.disk import room_needed
from ..core.files import write_text
from ..core.machine import Stopwatch
from ..core.method import Method
from ..measure.result import Result, StageRecord
from ..modules.counting import count
from ..modules.student import derive_student_
from ..publish.card import write_card
from ..publish.verify import run_snippet
from ..recipe.load import LoadedRecipe, load_recipe
from ..recipe.schema import Recipe
from ..train.allocator import keep_freed_memory
from ..train.data import calibration_batches
from ..train.stages import stage_methods
from .assemble import assemble
from .folder import RunFolder, open_folder, scratch_of
from .measuring import base_name, measure
from .reporter import Reporter
from .setup import Setup, open_recipe
from .staging import run_stages
from .state import RECORD, Run, kept, read_record
from .stopping import noting_why
from .training import clean, train
from .trivial import require_above_trivial, trivial_score
from .verify import read_labels

_STUDENT = "student"


def run_recipe(
    recipe: LoadedRecipe | str | Path | Mapping[str, Any] | Recipe,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    card: bool = True,
    reporter: Reporter | None = None,
) -> Result:
    """Execute a recipe, loaded or as `load_recipe` takes it, into the folder `output` and return what was measured.

    With `resume`, finished stages are kept and an interrupted one goes on from its last checkpoint; `overwrite` deletes
    what an earlier run left there, once the recipe is known to fit its model and data. HFCompressError without either
    where a run has done something there, or while another process writes there. Without `card` only numbers are left.
    """
    loaded = recipe if isinstance(recipe, LoadedRecipe) else load_recipe(recipe)
    if _trains(loaded.recipe):
        keep_freed_memory()
    reporter = reporter or Reporter()
    with (
        room_needed(output, "give the same command with --resume: what is done is kept"),
        open_folder(output, loaded, resume=resume, overwrite=overwrite) as folder,
    ):
        setup = _begin(loaded, folder, reporter, resume=resume)
        with noting_why(folder):
            result = _run(setup, folder, reporter)
            if card:
                write_card(folder.path)
                reporter.heading("Checking that the card's own code loads the model")
                run_snippet(result, folder.model)
    return result


def _begin(loaded: LoadedRecipe, folder: RunFolder, reporter: Reporter, *, resume: bool) -> Setup:
    """Open and check all that the recipe names, and only then begin in the folder."""
    reporter.heading("Opening model and data")
    setup = open_recipe(loaded)
    for note in setup.plan.notes:
        reporter.say(note)
    with folder.before_it_begins() as place:
        measured = folder.measured if resume and not folder.new else place / "measured"
        if not setup.makes_baseline:
            require_above_trivial(setup, folder, reporter, batches=place / folder.batches.name, kept=measured)
        folder.begin(loaded, resume=resume)
        folder.keep_measured(place / "measured")
    return setup


def _run(setup: Setup, folder: RunFolder, reporter: Reporter) -> Result:
    state = Run(setup, folder, reporter)
    folder.write_plan(setup.plan)
    control = _wants_control(setup.recipe)
    baseline = _baseline(state)
    if setup.makes_baseline:
        require_above_trivial(setup, folder, reporter, batches=folder.batches, kept=folder.measured)
    teacher = _teacher(state, baseline)
    student, made = _student(state, baseline, keep=control)
    compressed, records, state_after = run_stages(state, student, teacher)
    records = [*made, *records]
    save_checkpoint(compressed, folder.model, state_after.setup.processor)
    structure = read_structure(compressed)
    release_(compressed)  # what is measured is what lies on disk
    if control:
        _control(state, baseline)
    reporter.heading("Measuring")
    bench = measure(setup, state_after.setup, folder, reporter, control=folder.control if control else None)
    metric = setup.task.metric(setup.metric)
    bound = trivial_score(setup.task, metric, read_labels(folder), setup.model.config)
    result = assemble(setup, bench, records, structure, stock=is_stock(folder.model), trivial=bound)
    folder.clean()
    write_text(folder.path / "result.json", result.model_dump_json(indent=2) + "\n")
    return result


def _baseline(run: Run) -> nn.Module:
    """Return the model all numbers are compared with: the one named, merged or fine-tuned first where that is asked."""
    setup, folder = run.setup, run.folder
    if not setup.makes_baseline:
        return setup.model

    def execute() -> nn.Module:
        if setup.recipe.finetune is not None:
            return _train_plain(run, setup.model, folder.baseline)
        save_checkpoint(setup.model, folder.baseline, setup.processor)
        return setup.model

    heading = "Merging the adapter" if setup.recipe.finetune is None else "Fine-tuning"
    rest = [folder.stages, folder.control, folder.control_parts, scratch_of(folder.control)]
    return kept(run, folder.baseline, heading, execute, instead=setup.model, rest=rest)


def _train_plain(run: Run, model: nn.Module, target: Path) -> nn.Module:
    finetune = run.setup.recipe.finetune
    arguments = {} if finetune is None else finetune.train
    return _trained(run, model, arguments, methods=None, teacher=None, target=target, title="fine-tuning").eval()


def _student(run: Run, baseline: nn.Module, *, keep: bool) -> tuple[nn.Module, list[StageRecord]]:
    """Return what the stages act on: a checkpoint of its own, or the baseline, made smaller if the recipe says so.

    With it, where it is not the baseline as it is, comes the record of how it was made.

    The baseline itself is compressed, in place, unless it is to be kept: a large model has no room for a copy.
    """
    setup, config = run.setup, run.setup.recipe.student
    if isinstance(config, str):
        if not keep:
            release_(baseline)
        student: Any = setup.student
        return student, [_student_record(student, {"checkpoint": base_name(config)}, 0.0)]
    model = copy.deepcopy(baseline) if keep else baseline
    if config is None:
        return model, []

    def execute() -> nn.Module:
        watch, batches = Stopwatch(), None
        if config.measures:
            size = setup.recipe.evaluate.batch_size
            found = calibration_batches(setup.train, setup.collator, config.examples, size, setup.recipe.seed)
            batches = list(found)
        for line in derive_student_(model, config, batches, setup.recipe.seed):
            run.reporter.say(line)
        record = _student_record(model, config.model_dump(mode="json"), round(watch.seconds, 1))
        write_text(run.folder.student / RECORD, record.model_dump_json(indent=2) + "\n")
        save_checkpoint(model, run.folder.student / "model", setup.processor)
        return model

    made, rest = run.folder.student, [run.folder.stages]
    model = kept(run, made / "model", "Deriving the student", execute, instead=model, recorded=True, rest=rest)
    return model, [read_record(made)]


def _student_record(model: nn.Module, settings: dict[str, Any], seconds: float) -> StageRecord:
    report = {"parameters": float(count(model)), "weight_bytes": float(weight_bytes(model))}
    return StageRecord(name=_STUDENT, methods={_STUDENT: settings}, report={_STUDENT: report}, seconds=seconds)


def _teacher(run: Run, baseline: nn.Module) -> nn.Module | None:
    """Return the model to learn from, a copy of the baseline unless the recipe names one; None when no stage learns."""
    recipe = run.setup.recipe
    methods = [m for i, stage in enumerate(recipe.stages) for m in stage_methods(stage, f"stages.{i}").methods]
    if not any(m.needs.teacher for m in methods):
        return None
    if recipe.teacher is None:
        return copy.deepcopy(baseline)
    merge = recipe.merge_adapters
    return load_model(recipe.teacher, run.setup.task.auto_class, dtype=recipe.dtype, merge_adapters=merge)


def _trains(recipe: Recipe) -> bool:
    return recipe.finetune is not None or any(stage.train is not None for stage in recipe.stages)


def _wants_control(recipe: Recipe) -> bool:
    return recipe.evaluate.control and any(stage.train is not None for stage in recipe.stages)


def _control(run: Run, baseline: nn.Module) -> None:
    """Give the uncompressed model the same steps, the same teacher and, where a stage trains them, adapters too."""
    recipe, folder = run.setup.recipe, run.folder
    *earlier, last = (i for i, stage in enumerate(recipe.stages) if stage.train is not None)

    def step(model: nn.Module, teacher: nn.Module | None, index: int, target: Path) -> nn.Module:
        stage = recipe.stages[index]
        methods = [m for m in stage_methods(stage, f"stages.{index}").methods if m.info.in_control]
        return _trained(run, model, stage.train or {}, methods, teacher, target, f"control {index + 1}")

    def execute() -> nn.Module:
        model, teacher = copy.deepcopy(baseline), _teacher(run, baseline)
        for index in earlier:
            target = folder.control_parts / str(index)
            again = partial(step, model, teacher, index, target)
            model = kept(run, target, f"Dense control, stage {index + 1}", again, instead=model)
        model = step(model, teacher, last, folder.control)
        clean(folder.control_parts)
        return model

    kept(run, folder.control, "Dense control: the uncompressed model, same training", execute)


def _trained(
    run: Run,
    model: nn.Module,
    arguments: dict[str, Any],
    methods: list[Method] | None,
    teacher: nn.Module | None,
    target: Path,
    title: str,
) -> nn.Module:
    """Train, save to `target`, and remove the checkpoints on the way."""
    scratch = scratch_of(target)
    trainer = train(
        run.setup,
        model,
        arguments,
        methods=methods,
        teacher=teacher,
        scratch=scratch,
        folder=run.folder,
        title=title,
        reporter=run.reporter,
    )
    model = trainer.model.eval()  # type: ignore[union-attr]
    save_checkpoint(model, target, run.setup.processor)
    clean(scratch)
    return model
