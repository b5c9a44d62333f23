"""The one loop over a recipe's stages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint import save_checkpoint
from ..core.files import write_text
from ..core.machine import Stopwatch
from ..measure.result import StageRecord
from ..modules.pixels import enlarges_to, follow_pixels_
from ..modules.tokens import follow_tokenizer_
from ..train.compress import run_oneshot
from ..train.data import calibration_batches
from ..train.stages import StageMethods, stage_methods
from .state import RECORD, Run, kept, read_record
from .training import clean, train


def run_stages(run: Run, model: nn.Module, teacher: nn.Module | None) -> tuple[nn.Module, list[StageRecord], Run]:
    """Run every stage in turn, or take over what an earlier run left of it; the run's data follow the processor."""
    records: list[StageRecord] = []
    for index, stage in enumerate(run.setup.recipe.stages):
        methods = stage_methods(stage, f"stages.{index}")
        folder = run.folder.stage(index)
        heading = f"Stage {index + 1} of {len(run.setup.recipe.stages)}: {methods.title}"
        later = [run.folder.stage(i) for i in range(index, len(run.setup.recipe.stages))]
        execute = _stage_runner(run, model, methods, teacher, folder)
        model = kept(run, folder / "model", heading, execute, instead=model, recorded=True, rest=later)
        records.append(read_record(folder))
        run = _following(run, model, folder / "model", teacher)
    return model, records, run


def _following(run: Run, model: nn.Module, folder: Path, teacher: nn.Module | None) -> Run:
    """Return the run with the data as the model in `folder` reads it, and let the teacher read the same."""
    setup = run.setup
    as_saved = setup.recipe.data.model_copy(update={"image_size": None})
    processor = setup.task.load_processor(str(folder), model.config, as_saved)
    after = setup.reading_with(processor)
    if after is setup:
        return run
    if teacher is not None:
        follow_tokenizer_(teacher, setup.processor, processor)
        if follow_pixels_(teacher, setup.processor, processor):
            run.reporter.say(
                f"The teacher sees the student's images enlarged to its own {enlarges_to(teacher)} pixels."
            )
    return replace(run, setup=after)


def _stage_runner(
    run: Run, model: nn.Module, stage: StageMethods, teacher: nn.Module | None, folder: Path
) -> Callable[[], nn.Module]:
    def execute() -> nn.Module:
        watch = Stopwatch()
        processor = copy.deepcopy(run.setup.processor)
        if stage.train is None:
            report, done = _oneshot(run, model, stage, processor), model
        else:
            report, done = _train_stage(run, model, stage, teacher, folder, processor)
        settings = {m.info.name: m.config.model_dump(mode="json") for m in stage.methods}
        record = StageRecord(
            name=stage.title,
            methods=settings,
            train=stage.train,
            report=report,
            seconds=round(watch.seconds, 1),
            waiting=round(watch.waiting, 3),
        )
        write_text(folder / RECORD, record.model_dump_json(indent=2) + "\n")
        save_checkpoint(done, folder / "model", processor)
        clean(folder / "trainer")
        run.folder.log(stage=stage.title, seconds=record.seconds, report=report)
        return done

    return execute


def _oneshot(run: Run, model: nn.Module, stage: StageMethods, processor: Any) -> dict[str, dict[str, float]]:
    setup = run.setup
    batches = calibration_batches(
        setup.train, setup.collator, stage.calibration_examples, setup.recipe.evaluate.batch_size, setup.recipe.seed
    )
    with run.reporter.bar(stage.title) as progress:
        return run_oneshot(
            model,
            stage,
            calibration=batches,
            seed=setup.recipe.seed,
            processor=processor,
            corpus=setup.corpus,
            on_progress=progress,
        )


def _train_stage(
    run: Run, model: nn.Module, stage: StageMethods, teacher: nn.Module | None, folder: Path, processor: Any
) -> tuple[dict[str, dict[str, float]], nn.Module]:
    trainer = train(
        run.setup,
        model,
        stage.train or {},
        methods=stage.methods,
        teacher=teacher,
        processor=processor,
        scratch=folder / "trainer",
        folder=run.folder,
        title=stage.title,
        reporter=run.reporter,
    )
    return trainer.compression_report, trainer.model.eval()  # type: ignore[attr-defined,union-attr]
