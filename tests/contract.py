"""What every method promises, as checks that take any method class; `test_testers.py` shows that each can fail.

A check gets a `Subject`: one method on one tiny model. What is costly (a short training) is made once for all checks.
"""

from __future__ import annotations

import copy
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
from transformers import TrainingArguments

from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.checkpoint.memory import weight_bytes
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.method import Method, Phase
from hfcompress.modules.parametrizations import wrapped
from hfcompress.train.checkpointing import PlainTrainer
from hfcompress.train.compress import run_oneshot
from hfcompress.train.stages import StageMethods
from hfcompress.train.trainer import HFCompressTrainer

STEPS, TOLERANCE = 4, 1e-5
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

    @cached_property
    def base(self) -> nn.Module:
        """The model to compare with: the same training without the method, or the model as it was."""
        return _plainly_trained(self.name) if self.new().needs.training else make(self.name)

    @cached_property
    def outcome(self) -> Outcome:
        """The compressed model."""
        return self.compress(self.folder / "one")

    def compress(self, folder: Path) -> Outcome:
        """Make the compressed model anew."""
        if self.new().needs.training:
            trainer = _train(self.name, folder, self.new())
            return Outcome(trainer.model, trainer.compression_report)
        model, processor = make(self.name), self.processor()
        stage = StageMethods("test", [self.new()], None)
        surroundings = {"processor": processor, "corpus": corpus(self.name)}
        report = run_oneshot(model, stage, calibration=calibration(self.name), **surroundings)
        return Outcome(model, report, processor)


@lru_cache
def _plainly_trained(name: str) -> nn.Module:
    with TemporaryDirectory() as folder:
        return _train(name, Path(folder), None).model


def _train(name: str, folder: Path, method: Method | None, resume: bool = False) -> Any:
    """Train the tiny model for a few steps, with the method or plainly; with `resume` from half-way."""
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
    common: dict[str, Any] = {"model": make(name), "args": args, "train_dataset": Examples(name)}
    trainer = PlainTrainer(**common) if method is None else HFCompressTrainer(**common, recipe=method.config)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS // 2}") if resume else None)
    trainer.model.eval()
    return trainer


def check_identity_at_zero(subject: Subject) -> None:
    """At strength zero the prepared model answers as the model did."""
    model = make(subject.name)
    before = logits(model, subject.name)
    subject.prepared(model).step(model, 0.0)
    assert torch.equal(logits(model, subject.name), before), "strength zero changes the output"


def check_finalize_keeps_output(subject: Subject) -> None:
    """What is evaluated at full strength is what finalize leaves; the wrappers are gone."""
    model, processor = make(subject.name), subject.processor()
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
        loaded = load_model(_saved(model, subject.folder / "finalized").parent, auto_class(subject.name))
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
        sizes = [_saved(m, subject.folder / key).stat().st_size for key, m in (("a", base), ("b", model))]
        assert sizes[1] < sizes[0], "the method saves no bytes"


def check_plan(subject: Subject) -> None:
    """A plan, which has no data, foresees the size that calibration leaves."""
    if not subject.new().needs.calibration:
        return
    model, processor = make(subject.name), subject.processor()
    lifecycle = subject.prepared(model, processor)
    lifecycle.assume(model)
    lifecycle.finalize(model)
    planned, real = weight_bytes(model), weight_bytes(subject.outcome.model)
    assert abs(planned / real - 1) < PLANNED, f"the plan says {planned} bytes, the run leaves {real}"


def check_save_load(subject: Subject) -> None:
    """A saved model loads equal, and a second save writes the same bytes."""
    model, name, processor = subject.outcome.model, subject.name, subject.outcome.processor
    first = save_checkpoint(model, subject.folder / "first")
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
    """The same seed gives the same bytes."""
    models = (subject.outcome.model, subject.compress(subject.folder / "two").model)
    files = [_saved(model, subject.folder / f"same{i}") for i, model in enumerate(models)]
    assert files[0].read_bytes() == files[1].read_bytes(), "the same seed gives other bytes"
    assert load_file(files[0]), "nothing was saved"


def check_report(subject: Subject) -> None:
    """Reported numbers agree with an independent count."""
    outcome = subject.outcome
    expected = {k: float(v) for k, v in subject.case.expected_report(make(subject.name), outcome.model).items()}
    assert outcome.report[subject.method.info.name] == expected, "the report does not agree with a count"


def check_resume(subject: Subject) -> None:
    """A training resumed half-way ends where the uninterrupted one does, to the bit."""
    if not subject.trains:
        return
    folder = subject.folder / "one"
    if subject.new().needs.training:
        whole = subject.outcome.model.state_dict()
    else:
        whole = _train(subject.name, folder, subject.new()).model.state_dict()
    resumed = _train(subject.name, folder, subject.new(), resume=True).model.state_dict()
    assert whole.keys() == resumed.keys(), "resuming gives another structure"
    assert all(torch.equal(whole[k], resumed[k]) for k in whole), "resuming gives other weights"


def _saved(model: nn.Module, folder: Path) -> Path:
    return save_checkpoint(model, folder) / "model.safetensors"


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
