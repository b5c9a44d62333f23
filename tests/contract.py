"""What every method promises, as checks that take any method class; `test_testers.py` shows that each can fail."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from cases import MethodCase
from safetensors.torch import load_file
from tiny import Examples, auto_class, logits, make
from torch import nn
from transformers import TrainingArguments

from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.method import Method, Phase
from hfcompress.modules.parametrizations import wrapped
from hfcompress.train.checkpointing import PlainTrainer
from hfcompress.train.compress import compress
from hfcompress.train.trainer import HFCompressTrainer

STEPS, TOLERANCE = 6, 1e-5


def new(method: type[Method], case: MethodCase) -> Method:
    """Build the method from the case's settings."""
    return method(method.Config.model_validate(case.settings))


def prepared(method: type[Method], case: MethodCase, model: nn.Module) -> Lifecycle:
    """Attach the method to `model` and give what it would train other values than it starts with."""
    lifecycle = Lifecycle([new(method, case)], training=True)
    teacher = copy.deepcopy(model)
    lifecycle.prepare(model, teacher=teacher)
    generator = torch.Generator().manual_seed(3)
    for group in lifecycle.param_groups(model):
        for parameter in group["params"]:
            parameter.data += torch.randn(parameter.shape, generator=generator)
    return lifecycle


def train(
    name: str, folder: Path, method: type[Method] | None, case: MethodCase, *, resume: bool = False, seed: int = 0
) -> Any:
    """Train the tiny model `name` for a few steps, with the method or plain; with `resume` from half-way."""
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
        seed=seed,
    )
    common: dict[str, Any] = {"model": make(name), "args": args, "train_dataset": Examples(name)}
    trainer = PlainTrainer(**common) if method is None else HFCompressTrainer(**common, recipe=new(method, case).config)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS // 2}") if resume else None)
    trainer.model.eval()
    return trainer


def compressed(name: str, folder: Path, method: type[Method], case: MethodCase) -> tuple[nn.Module, nn.Module, Any]:
    """Return (the model to compare with, the compressed model, what the method reported)."""
    if method.info.needs.training:
        trainer = train(name, folder / "with", method, case)
        return train(name, folder / "without", None, case).model, trainer.model, trainer.compression_report
    base, model = make(name), make(name)
    instance = new(method, case)
    compress(model, instance.config)
    lifecycle = Lifecycle([new(method, case)], training=False)
    again = make(name)
    lifecycle.prepare(again)
    return base, model, lifecycle.finalize(again)


def check_identity_at_zero(method: type[Method], case: MethodCase, name: str, folder: Path) -> None:
    """At strength zero the prepared model answers as the model did."""
    model = make(name)
    before = logits(model, name)
    prepared(method, case, model).step(model, 0.0)
    assert torch.equal(logits(model, name), before), "strength zero changes the output"


def check_finalize_keeps_output(method: type[Method], case: MethodCase, name: str, folder: Path) -> None:
    """What is evaluated at full strength is what finalize leaves; the wrappers are gone."""
    model = make(name)
    lifecycle = prepared(method, case, model)
    lifecycle.step(model, 1.0)
    before = logits(model, name)
    lifecycle.finalize(model)
    assert torch.allclose(logits(model, name), before, atol=TOLERANCE), "finalize changes the output"
    assert not wrapped(model), "a training wrapper is left"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()), "a hook is left"


def check_changes_something(method: type[Method], case: MethodCase, name: str, folder: Path) -> None:
    """The result differs from the same without the method, and what is permanent takes fewer bytes."""
    base, model, _ = compressed(name, folder, method, case)
    assert not torch.allclose(logits(base, name), logits(model, name), atol=1e-6), "the method changes nothing"
    if method.info.phase is not Phase.COMPANION:
        sizes = [save_checkpoint(m, folder / key) / "model.safetensors" for key, m in (("a", base), ("b", model))]
        assert sizes[1].stat().st_size < sizes[0].stat().st_size, "the method saves no bytes"


def check_save_load(method: type[Method], case: MethodCase, name: str, folder: Path) -> None:
    """A saved model loads equal, and a second save writes the same bytes."""
    model = compressed(name, folder, method, case)[1]
    first = save_checkpoint(model, folder / "first")
    loaded = load_model(first, auto_class(name))
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys(), "the loaded model has other tensors"
    assert all(ours[k].dtype == theirs[k].dtype and torch.equal(ours[k], theirs[k]) for k in ours), "tensors differ"
    assert torch.allclose(logits(model, name), logits(loaded, name), atol=1e-6), "the loaded model answers otherwise"
    loaded.save_pretrained(folder / "second")
    for file in ("model.safetensors", "config.json"):
        assert (folder / "second" / file).read_bytes() == (first / file).read_bytes(), f"a second save changes {file}"
    assert not list(first.glob("*.bin")), "something is pickled"


def check_resume(method: type[Method], case: MethodCase, name: str, folder: Path) -> None:
    """A training resumed half-way ends where the uninterrupted one does, to the bit."""
    whole = train(name, folder, method, case).model.state_dict()
    resumed = train(name, folder, method, case, resume=True).model.state_dict()
    assert whole.keys() == resumed.keys(), "resuming gives another structure"
    assert all(torch.equal(whole[k], resumed[k]) for k in whole), "resuming gives other weights"


def check_deterministic(method: type[Method], case: MethodCase, name: str, folder: Path) -> None:
    """The same seed gives the same bytes."""
    files = []
    for attempt in ("one", "two"):
        model = compressed(name, folder / attempt, method, case)[1]
        files.append(save_checkpoint(model, folder / attempt / "saved") / "model.safetensors")
    assert files[0].read_bytes() == files[1].read_bytes(), "the same seed gives other bytes"
    assert load_file(files[0]), "nothing was saved"


def check_report(method: type[Method], case: MethodCase, name: str, folder: Path) -> None:
    """Reported numbers agree with an independent count."""
    _, model, report = compressed(name, folder, method, case)
    expected = {k: float(v) for k, v in case.expected_report(make(name), model).items()}
    assert report[method.info.name] == expected, "the report does not agree with a count"


EVERY = (
    check_identity_at_zero,
    check_finalize_keeps_output,
    check_changes_something,
    check_save_load,
    check_deterministic,
    check_report,
)
TRAINING = (check_resume,)
