"""Training inside a run: with a stage's methods, or plain for fine-tuning and the control."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from ..checkpoint import is_whole
from ..core.files import remove
from ..core.method import Method
from ..core.progress import listening
from ..recipe.plan import SELECTION_SHARE
from ..recipe.training import SAVE_STRATEGY
from ..train.checkpointing import PlainTrainer
from ..train.data import workers_for
from ..train.interrupt import SaveOnInterrupt
from ..train.tasks import metric_key
from ..train.trainer import HFCompressTrainer
from .folder import RunFolder
from .reporter import Reporter, TrainingBar
from .setup import Setup

_WAITS = 0.05  # share of the time that training may wait for data before it is said


def train(
    setup: Setup,
    model: nn.Module,
    arguments: Mapping[str, Any],
    *,
    methods: list[Method] | None,
    teacher: Any,
    processor: Any = None,
    scratch: Path,
    folder: RunFolder,
    title: str,
    reporter: Reporter,
) -> Trainer:
    """Train `model` with `methods` (None: plain) and return the trainer, its model finalized, as `processor` is.

    Checkpoints go to `scratch`; when some lie there, training goes on from the last one.
    """
    arguments = {**_workers(setup.train), **selecting(arguments, setup)}
    args = training_arguments(arguments, scratch, setup.recipe.seed)
    train_set, selection = _selection(setup, methods or [], args)
    common: dict[str, Any] = {
        "model": model,
        "args": args,
        "train_dataset": train_set,
        "eval_dataset": selection,
        "data_collator": setup.collator,
        "train_collator": setup.training_collator,
        "compute_metrics": setup.task.compute_metrics(setup.metric),
        "preprocess_logits_for_metrics": setup.task.reduce_logits(),
    }
    trainer: HFCompressTrainer | PlainTrainer
    if methods:
        trainer = HFCompressTrainer(
            **common,
            recipe=[m.config for m in methods],
            teacher=teacher,
            teacher_cache=setup.recipe.teacher_cache if any(m.needs.teacher for m in methods) else False,
            processing_class=processor or setup.processor,
        )
    else:
        trainer = PlainTrainer(**common)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if isinstance(trainer, HFCompressTrainer) and trainer.teacher_cache is not None:
        with reporter.bar("running the teacher once") as progress, listening(progress):
            note = trainer.open_teacher_cache()
        reporter.say(str(note))
        folder.log(stage=title, note=note)
    _train(trainer, scratch, TrainingBar(reporter, title, folder.log))
    _tell_waiting(trainer.waiting.share, title, folder, reporter)
    return trainer


def selecting(arguments: Mapping[str, Any], setup: Setup) -> dict[str, Any]:
    """Say which way the run's metric runs where it picks the best checkpoint: the Trainer takes more for better."""
    key, better = metric_key(setup.metric), setup.task.metric(setup.metric).higher_is_better
    picks = arguments.get("metric_for_best_model") in (key, f"eval_{key}")
    return {"greater_is_better": better, **arguments} if picks else dict(arguments)


def last_checkpoint(scratch: Path) -> str | None:
    """Return the newest complete checkpoint: the Trainer writes its state last, so one without it was cut short."""
    found = [p.parent for p in scratch.glob("checkpoint-*/trainer_state.json") if is_whole(p.parent)]
    newest = max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)
    return None if newest is None else str(newest)


def clean(scratch: Path) -> None:
    """Remove the checkpoints of a training that is done; its model is saved elsewhere."""
    remove(scratch)


def training_arguments(arguments: Mapping[str, Any], scratch: Path, seed: int) -> TrainingArguments:
    """Return the recipe's arguments on top of what suits a run."""
    own = {"save_strategy": SAVE_STRATEGY, "save_total_limit": 1, "logging_steps": 10}
    if not torch.cuda.is_available():
        own["dataloader_pin_memory"] = False
    fixed = {"output_dir": str(scratch), "seed": seed, "disable_tqdm": True, "remove_unused_columns": False}
    return TrainingArguments(**{"report_to": "none", **own, **arguments, **fixed})


def _workers(train: Dataset) -> dict[str, Any]:
    """Return what has examples that are decoded as they are read made ready in other processes, while one trains."""
    count = workers_for(train)
    return {"dataloader_num_workers": count, "dataloader_persistent_workers": True} if count else {}


def _tell_waiting(share: float, title: str, folder: RunFolder, reporter: Reporter) -> None:
    """Log the share of the time in which training waited for data, and say it where it is worth a mend."""
    folder.log(stage=title, waited_for_data=round(share, 4))
    if share > _WAITS:
        reporter.say(
            f"Training waited for its data {share:.0%} of the time: more processes that make it ready "
            "(dataloader_num_workers under `train`) may help, or smaller images (data.image_size)."
        )


def _train(trainer: Trainer, scratch: Path, bar: TrainingBar) -> None:
    checkpoint = last_checkpoint(scratch)
    callback: TrainerCallback
    with SaveOnInterrupt() as callback:
        trainer.add_callback(bar)
        trainer.add_callback(callback)
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            bar.close()


def _selection(setup: Setup, methods: list[Method], args: TrainingArguments) -> tuple[Dataset, Dataset | None]:
    """Hold a part of the training split out when the stage evaluates: what it selects on is never what is reported."""
    train = setup.train_for(methods)
    if args.eval_strategy == "no":
        return train, None
    split = setup.train.train_test_split(test_size=SELECTION_SHARE, seed=setup.recipe.seed)
    kept = split["train"]
    if len(train) > len(setup.train):
        kept = concatenate_datasets([kept, train.select(range(len(setup.train), len(train)))])
    return kept, setup.task.for_evaluation(split["test"], setup.processor, setup.recipe.data)
