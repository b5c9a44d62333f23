"""What every method promises, as checks that take any method class; `test_testers.py` shows that each can fail.

A check gets a `Subject`: one method on one tiny model. What is costly is made once for all checks: one short training
and one that is interrupted half-way, a model to compare with, and three saved models.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from cases import MethodCase
from safetensors.torch import load_file
from tiny import Examples, auto_class, calibration, corpus, logits, make
from tiny import processor as processor_of
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.checkpoint.memory import weight_bytes
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.method import Method, Phase
from hfcompress.modules.coverage import KEY as NOT_COVERED
from hfcompress.modules.parametrizations import wrapped
from hfcompress.train.checkpointing import PlainTrainer
from hfcompress.train.compress import run_oneshot
from hfcompress.train.stages import StageMethods
from hfcompress.train.trainer import HFCompressTrainer

STEPS, TOLERANCE = 4, 1e-5
HALF = f"checkpoint-{STEPS // 2}"
PLANNED = 0.25  # of a tiny model, rounding to whole heads, units and bits is so much


@dataclass(frozen=True)
class Outcome:
    """What a method made of the model, and what it said about it."""

    model: nn.Module
    report: dict[str, dict[str, float]]
    processor: Any = None  # what reads its input, where the method changes that


@dataclass
class Subject:
    """One method, with the settings of its case, on the tiny model `name`."""

    method: type[Method]
    case: MethodCase
    name: str
    folder: Path

    def new(self) -> Method:
        """Build the method from the case's settings."""
        return self.method(self.method.Config.model_validate(self.case.settings))

    @property
    def trains(self) -> bool:
        """Say whether the method can act while training; those that read data or change the processor are one-shot."""
        needs = self.new().needs
        return not (needs.calibration or needs.processor)

    def processor(self) -> Any:
        """Return a fresh tokenizer or image processor for a method that changes it; None for the others."""
        return processor_of(self.name) if self.new().needs.processor else None

    def prepared(self, model: nn.Module, processor: Any = None) -> Lifecycle:
        """Attach the method to `model` and give what it would train other values than it starts with."""
        lifecycle = Lifecycle([self.new()], training=self.trains)
        surroundings = {"processor": processor or self.processor(), "corpus": corpus(self.name)}
        lifecycle.prepare(model, teacher=copy.deepcopy(model), **surroundings)
        generator = torch.Generator().manual_seed(3)
        for group in lifecycle.param_groups(model):
            for parameter in group["params"]:
                parameter.data += torch.randn(parameter.shape, generator=generator)
        return lifecycle

    @property
    def base(self) -> nn.Module:
        """The model to compare with: the same training without the method, or the model as it was."""
        return _plain(self.name, self.new().needs.training)

    @cached_property
    def outcome(self) -> Outcome:
        """The compressed model."""
        if self.new().needs.training:
            trainer = self.training
            return Outcome(trainer.model, trainer.compression_report)
        return self.compress()

    @cached_property
    def saved(self) -> Path:
        """The folder of the compressed model."""
        return save_checkpoint(self.outcome.model, self.folder / "first")

    def compress(self) -> Outcome:
        """Make the compressed model anew, in one shot."""
        model, processor = fresh(self.name), self.processor()
        stage = StageMethods("test", [self.new()], None)
        surroundings = {"processor": processor, "corpus": corpus(self.name)}
        report = run_oneshot(model, stage, calibration=calibration(self.name), **surroundings)
        return Outcome(model, report, processor)

    @cached_property
    def training(self) -> Any:
        """The trainer of a short training with the method; `HALF` under its folder is where it was half-way."""
        trainer = _trainer(self.name, self.folder / "whole", self.new())
        _train(trainer)
        return trainer

    @cached_property
    def interrupted(self) -> Path:
        """The folder of the same training, ended half-way from outside, where it has saved."""
        trainer = _trainer(self.name, self.folder / "interrupted", self.new(), [_EndsWhenSaved()])
        with suppress(_Ended):
            trainer.train()
        return self.folder / "interrupted"

    def resumed(self) -> nn.Module:
        """Take a training up half-way, that of `interrupted` where there is one, and return the model it ends with."""
        folder = self.interrupted if self.new().needs.training else self.training.args.output_dir
        trainer = _trainer(self.name, self.folder / "resumed", self.new())
        _train(trainer, str(Path(folder) / HALF))
        return trainer.model


class _Ended(Exception):  # noqa: N818 - it is no error
    """The process is gone."""


class _EndsWhenSaved(TrainerCallback):
    def on_save(self, *_: Any, **__: Any) -> None:
        raise _Ended


@lru_cache
def _made(name: str) -> nn.Module:
    return make(name)


def fresh(name: str) -> nn.Module:
    """Return the tiny model as `make` does, which builds it once."""
    model = copy.deepcopy(_made(name))
    torch.manual_seed(0)
    return model


@lru_cache
def _plain(name: str, trained: bool) -> nn.Module:
    if not trained:
        return make(name)
    with TemporaryDirectory() as folder:
        trainer = _trainer(name, Path(folder), None)
        _train(trainer)
        return trainer.model


@lru_cache
def _plain_size(name: str, trained: bool) -> int:
    with TemporaryDirectory() as folder:
        return _weights(save_checkpoint(_plain(name, trained), folder)).stat().st_size


def _trainer(name: str, folder: Path, method: Method | None, callbacks: Sequence[TrainerCallback] = ()) -> Any:
    """Return a trainer of the tiny model for a few steps, with the method or plainly."""
    args = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=STEPS // 2,
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    common: dict[str, Any] = {"model": fresh(name), "args": args, "train_dataset": Examples(name)}
    common["callbacks"] = [*callbacks]
    return PlainTrainer(**common) if method is None else HFCompressTrainer(**common, recipe=method.config)


def _train(trainer: Any, checkpoint: str | None = None) -> None:
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.model.eval()


def check_identity_at_zero(subject: Subject) -> None:
    """At strength zero the prepared model answers as the model did."""
    model = fresh(subject.name)
    before = logits(model, subject.name)
    subject.prepared(model).step(model, 0.0)
    assert torch.equal(logits(model, subject.name), before), "strength zero changes the output"


def check_finalize_keeps_output(subject: Subject) -> None:
    """What is evaluated at full strength is what finalize leaves; the wrappers are gone."""
    model, processor = fresh(subject.name), subject.processor()
    lifecycle = subject.prepared(model, processor)
    lifecycle.observe(model, lambda: calibration(subject.name))
    lifecycle.step(model, 1.0)
    before = logits(model, subject.name)
    lifecycle.finalize(model)
    after = logits(model, subject.name, processor)
    assert not wrapped(model), "a training wrapper is left"
    if not subject.case.other_inputs:
        assert torch.allclose(after, before, atol=TOLERANCE), "finalize changes the output"
    if left := _hooks(model):  # what a loaded model that computes has too is no leftover
        loaded = load_model(save_checkpoint(model, subject.folder / "finalized"), auto_class(subject.name))
        logits(loaded, subject.name, processor)
        assert _hooks(loaded) == left, "a hook is left"


def _hooks(model: nn.Module) -> list[tuple[str, Any]]:
    """Return each module's path with the functions that listen to it."""
    return [
        (p, h) for p, m in model.named_modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]


def check_changes_something(subject: Subject) -> None:
    """The result differs from the same without the method, and what is permanent takes fewer bytes."""
    name, base, model = subject.name, subject.base, subject.outcome.model
    if not subject.case.same_answers:
        after = logits(model, name, subject.outcome.processor)
        assert not torch.allclose(logits(base, name), after, atol=1e-6), "the method changes nothing"
    if subject.method.info.phase is not Phase.COMPANION and not subject.case.same_size:
        before = _plain_size(name, subject.new().needs.training)
        assert _weights(subject.saved).stat().st_size < before, "the method saves no bytes"


def check_plan(subject: Subject) -> None:
    """A plan, which has no data, foresees the size that calibration leaves."""
    if not subject.new().needs.calibration:
        return
    model, processor = fresh(subject.name), subject.processor()
    lifecycle = subject.prepared(model, processor)
    lifecycle.assume(model)
    lifecycle.finalize(model)
    planned, real = weight_bytes(model), weight_bytes(subject.outcome.model)
    assert abs(planned / real - 1) < PLANNED, f"the plan says {planned} bytes, the run leaves {real}"


def check_save_load(subject: Subject) -> None:
    """A saved model loads equal, and a second save writes the same bytes."""
    model, name, processor = subject.outcome.model, subject.name, subject.outcome.processor
    first = subject.saved
    loaded = load_model(first, auto_class(name))
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys(), "the loaded model has other tensors"
    assert all(ours[k].dtype == theirs[k].dtype and torch.equal(ours[k], theirs[k]) for k in ours), "tensors differ"
    answers = [logits(m, name, processor) for m in (model, loaded)]
    assert torch.allclose(*answers, atol=1e-6), "the loaded model answers otherwise"
    loaded.save_pretrained(subject.folder / "second")
    for file in ("model.safetensors", "config.json"):
        again = (subject.folder / "second" / file).read_bytes()
        assert again == (first / file).read_bytes(), f"a second save changes {file}"
    assert not list(first.glob("*.bin")), "something is pickled"


def check_deterministic(subject: Subject) -> None:
    """The same seed gives the same bytes: of the model, or half-way through a training, whose rest is resumed."""
    if subject.new().needs.training:
        folders = [Path(subject.training.args.output_dir) / HALF, subject.interrupted / HALF]
    else:
        folders = [subject.saved, save_checkpoint(subject.compress().model, subject.folder / "same")]
    files = [{file.name: file.read_bytes() for file in folder.glob("*.safetensors")} for folder in folders]
    assert files[0] == files[1], "the same seed gives other bytes"
    assert load_file(_weights(folders[0])), "nothing was saved"


def check_report(subject: Subject) -> None:
    """Reported numbers agree with an independent count."""
    outcome = subject.outcome
    expected = {k: float(v) for k, v in subject.case.expected_report(_made(subject.name), outcome.model).items()}
    report = dict(outcome.report[subject.method.info.name])
    left = report.pop(NOT_COVERED, None)
    assert report == expected, "the report does not agree with a count"
    if left is not None:
        whole = 1.0 if subject.new().needs.training else _unchanged(_made(subject.name), outcome.model)
        assert 0 <= left <= whole + 1e-4, "weights that are said to be left alone have changed"


def _unchanged(base: nn.Module, model: nn.Module) -> float:
    """Return the share of a model's weights, vectors aside, that are in both models and alike."""
    now = model.state_dict()
    weights = {n: p for n, p in base.named_parameters() if p.ndim > 1}
    alike = [p.numel() for n, p in weights.items() if n in now and now[n].shape == p.shape and torch.equal(now[n], p)]
    return sum(alike) / sum(p.numel() for p in weights.values())


def check_resume(subject: Subject) -> None:
    """A training resumed half-way ends where the uninterrupted one does, to the bit."""
    if not subject.trains:
        return
    whole, resumed = subject.training.model.state_dict(), subject.resumed().state_dict()
    assert whole.keys() == resumed.keys(), "resuming gives another structure"
    assert all(torch.equal(whole[k], resumed[k]) for k in whole), "resuming gives other weights"


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"


CHECKS = (
    check_identity_at_zero,
    check_finalize_keeps_output,
    check_changes_something,
    check_plan,
    check_save_load,
    check_deterministic,
    check_report,
    check_resume,
)
