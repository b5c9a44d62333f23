"""The life cycle of a stage: new, prepared, finalized; the only place that knows this order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from itertools import groupby
from typing import Any

import torch
from torch import nn

from .answers import answering_by_name
from .errors import LifecycleError, TargetError
from .method import Context, Corpus, Method, Phase
from .progress import track
from .user_adapters import refuse_adapters

NO_LOSS = (
    "the model gives no loss: its forward has to return one, under the name `loss` or first of several, where it is "
    "handed `labels`; or give the trainer a compute_loss_func"
)


class State(Enum):
    """Where a stage stands."""

    NEW = "new"
    PREPARED = "prepared"
    FINALIZED = "finalized"


class Lifecycle:
    """Drives the methods of one stage together, in the order of their phases."""

    def __init__(self, methods: Iterable[Method], *, training: bool) -> None:
        """Take the stage's methods; LifecycleError when one of them does not go with (or without) training."""
        self.methods = sorted(methods, key=lambda m: (m.info.phase, m.info.name))
        self.training, self.state = training, State.NEW
        _refuse_misfits(self.methods, training)

    def passes(self) -> list[Lifecycle]:
        """Return what the stage is made of, one after the other: itself if it trains, else a life cycle per phase.

        Without training each phase is done before the next looks at the model: what a later method measures, chooses
        and packs are the layers that the earlier ones leave, and nothing is packed that is still to be cut.
        """
        if self.training:
            return [self]
        phases = groupby(self.methods, lambda method: method.info.phase)
        return [Lifecycle(methods, training=False) for _, methods in phases]

    @property
    def needs_teacher(self) -> bool:
        """Say whether a method of this stage distils."""
        return any(m.needs.teacher for m in self.methods)

    @property
    def needs_calibration(self) -> bool:
        """Say whether a method of this stage reads calibration batches."""
        return any(m.needs.calibration for m in self.methods)

    @property
    def wants(self) -> frozenset[str]:
        """Return the extra model outputs the losses read now."""
        return frozenset().union(*(m.wants for m in self.methods))

    @property
    def ever_wants(self) -> frozenset[str]:
        """Return the extra model outputs the losses read at any time of the stage."""
        return frozenset().union(*(m.ever_wants for m in self.methods))

    def prepare(
        self,
        model: nn.Module,
        *,
        seed: int = 0,
        teacher: nn.Module | None = None,
        processor: Any = None,
        corpus: Corpus | None = None,
    ) -> dict[str, list[str]]:
        """Attach every method to the model and return the paths each acts on.

        Raises TargetError when a method finds nothing to act on, where two would store the same weight, and for a model
        with adapters of the user's own, on which only methods act that leave nothing.
        """
        self._expect(State.NEW, "prepare")
        if lasting := [m.info.name for m in self.methods if m.info.lasting]:
            refuse_adapters(model, lasting)
        context = Context(model, seed, teacher, processor, corpus or Corpus())
        targets: dict[str, list[str]] = {}
        claims: dict[int, str] = {}
        for method in self.methods:
            with answering_by_name(model, teacher):
                targets[method.info.name] = method.prepare(model, context)
            if not targets[method.info.name]:
                raise TargetError(f"{method.info.name} found nothing to change in this {type(model).__name__}")
            if method.info.phase is Phase.QUANT:
                _claim(model, targets[method.info.name], method.info.name, claims)
        self.state = State.PREPARED
        return targets

    def observe(self, model: nn.Module, batches: Callable[[], Iterable[Mapping[str, torch.Tensor]]]) -> None:
        """Show calibration batches to the methods that need them; `batches` is called once for each of those."""
        self._expect(State.PREPARED, "observe")
        for method in track([m for m in self.methods if m.needs.calibration], _title):
            with answering_by_name(model):
                method.observe(model, batches())

    def assume(self, model: nn.Module) -> None:
        """For a plan: let the methods that read calibration data do without it, as far as sizes go."""
        self._expect(State.PREPARED, "plan")
        with torch.no_grad():
            for method in self.methods:
                if method.needs.calibration:
                    method.assume(model)

    def step(self, model: nn.Module, fraction: float) -> None:
        """Set every method's strength for `fraction` of the stage."""
        self._expect(State.PREPARED, "step")
        for method in self.methods:
            method.on_step(model, fraction)

    def settled(self, fraction: float) -> bool:
        """Say whether no method's strength rises any more."""
        return all(m.settled(fraction) for m in self.methods)

    def loss(self, task: torch.Tensor, batch: Mapping[str, Any], student: Any, teacher: Any) -> torch.Tensor:
        """Return the loss to train on: the weighted task loss plus what the methods add."""
        if task is None or task.numel() != 1:
            raise LifecycleError(NO_LOSS)
        for method in self.methods:
            task = task * method.task_weight
        extra = (m.extra_loss(batch, student, teacher) for m in self.methods)
        return sum((e for e in extra if e is not None), start=task)

    def log(self) -> dict[str, float]:
        """Return what the methods have to say of the training since the last call, as ``method/number``."""
        return {f"{m.info.name}/{key}": value for m in self.methods for key, value in m.log().items()}

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the optimizer groups of all methods."""
        return [group for m in self.methods for group in m.param_groups(model)]

    def finalize(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Bring every method to full strength, make it permanent, and return what each reports."""
        self.step(model, 1.0)
        for method in self.methods:  # what earlier phases cut is rounded once, as it is then
            if method.info.phase >= Phase.QUANT:
                method.on_step(model, 0.0)
        training = model.training
        with torch.no_grad():
            for method in track(self.methods, _title):
                with answering_by_name(model):
                    method.finalize(model)
        model.train(training)
        self.state = State.FINALIZED
        return {m.info.name: {k: float(v) for k, v in m.report(model).items()} for m in self.methods}

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return every method's settings, defaults included."""
        return {m.info.name: m.config.model_dump(mode="json") for m in self.methods}

    def _expect(self, state: State, action: str) -> None:
        if self.state is not state:
            raise LifecycleError(f"cannot {action}: the stage is {self.state.value}, not {state.value}")


def _refuse_misfits(methods: list[Method], training: bool) -> None:
    permanent = [m.info.name for m in methods if m.info.lasting]
    for method in methods:
        name, needs, reason = method.info.name, method.needs, ""
        if needs.training and not training:
            reason = "acts while training: give its stage `train:`, or use HFCompressTrainer"
        elif needs.calibration and training:
            reason = (
                "reads calibration data and acts at once: give it a stage of its own without `train:`, before or after "
                "the one that trains"
            )
        elif needs.processor and training:
            reason = (
                "changes the tokenizer or image processor, and what is trained on is read already: give it a stage of "
                "its own without `train:`, or call hfcompress.compress(model, …, processor=processor)"
            )
        elif needs.calibration and (before := _changing_inputs(methods, method.info.phase)):
            reason = (
                f"reads calibration data, which {before}, done before it, makes the model read otherwise: put {name} "
                "in a later stage"
            )
        elif method.info.alone and len(permanent) > 1:
            reason = (
                f"changes the paths or sizes of modules that {', '.join(permanent)} would act on together: give it a "
                "stage of its own"
            )
        elif method.info.learns_storage and training and (cut := [m.info.name for m in methods if m.info.cuts]):
            reason = f"trains how layers are stored that {cut[0]} cuts when training ends: put {name} in a later stage"
        if reason:
            raise LifecycleError(f"{name} {reason}")


def _changing_inputs(methods: list[Method], phase: Phase) -> str:
    """Return the method of an earlier phase that changes the tokenizer or image processor; "" for none."""
    return next((m.info.name for m in methods if m.needs.processor and m.info.phase < phase), "")


def _claim(model: nn.Module, paths: list[str], name: str, claims: dict[int, str]) -> None:
    """Note by its parameters, which tied layers share, that the method `name` stores each layer of `paths`.

    Raises TargetError where another method of the stage does: it would store what that one has rounded already.
    """
    weights = {path: {id(p) for p in model.get_submodule(path).parameters()} for path in paths}
    if taken := [path for path in paths if weights[path] & claims.keys()]:
        others = sorted({claims[key] for path in taken for key in weights[path] & claims.keys()})
        more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
        raise TargetError(
            f"{taken[0]}{more}: two methods of this stage claim its weight, {' and '.join([*others, name])}; add it to "
            "the `ignore` of one"
        )
    claims.update(dict.fromkeys(set().union(*weights.values()), name))


def _title(method: Method) -> str:
    return method.info.title
