"""Each check of the contract rejects a method that breaks just that promise."""

from __future__ import annotations

import itertools
from typing import Any

import contract
import pytest
import torch
from cases import MethodCase
from torch import nn

from hfcompress.core import registry
from hfcompress.core.config import StrictModel
from hfcompress.core.families import blocks_of
from hfcompress.core.method import Category, Context, Method, MethodInfo, Needs, Phase
from hfcompress.modules.gate import ColumnGate
from hfcompress.modules.packed import pack_
from hfcompress.modules.parametrizations import attach
from hfcompress.modules.rounding import RoundedWeight


class Config(StrictModel):
    """No settings."""


class Honest(Method[Config]):
    """Packs the feed-forward layers, correctly: the method the wrong ones below are made from."""

    info = MethodInfo("honest", "Honest", "test", Category.QUANTIZATION, Phase.QUANT, ())
    Config = Config

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        self.paths = [b.down for b in blocks_of(model, ctx.family)]
        for path in self.paths:
            attach(model, path, RoundedWeight())
        return self.paths

    def on_step(self, model: nn.Module, fraction: float) -> None:
        for path in self.paths:
            model.get_submodule(path).parametrizations.weight[0].on.fill_(fraction >= 1)

    def finalize(self, model: nn.Module) -> None:
        for path in self.paths:
            nn.utils.parametrize.remove_parametrizations(model.get_submodule(path), "weight", leave_parametrized=False)
            pack_(model, path)

    def report(self, model: nn.Module) -> dict[str, float]:
        return {"layers": len(self.paths)}


def _shift(bias: torch.Tensor, amount: float) -> None:
    """Change a bias by more than a constant, which the layer norm after it would take out again."""
    bias.add_(amount * torch.linspace(-1, 1, len(bias)))


def _variant(name: str, training: bool = False, **overrides: Any) -> type[Method]:
    info = MethodInfo(name, name, "test", Category.QUANTIZATION, Phase.QUANT, (), Needs(training=training))
    config = type(f"{name}_config", (StrictModel,), {"__module__": __name__})
    return type(name, (Honest,), {"info": info, "Config": config, **overrides})


def _not_identity(self: Any, model: nn.Module, fraction: float) -> None:
    for path in self.paths:
        model.get_submodule(path).parametrizations.weight[0].on.fill_(True)


def _changes_at_the_end(self: Any, model: nn.Module) -> None:
    Honest.finalize(self, model)
    with torch.no_grad():
        for path in self.paths:
            _shift(model.get_submodule(path).bias, 0.1)


def _leaves_wrapper(self: Any, model: nn.Module) -> None:
    """Stay fake: rounded in float, as toolkits do that save nothing."""


def _listens_on(self: Any, model: nn.Module) -> None:
    Honest.finalize(self, model)
    model.get_submodule(self.paths[0]).register_forward_hook(lambda *_: None)


def _does_nothing(self: Any, model: nn.Module) -> None:
    for path in self.paths:
        nn.utils.parametrize.remove_parametrizations(model.get_submodule(path), "weight", leave_parametrized=False)


def _is_lost_on_save(self: Any, model: nn.Module) -> None:
    Honest.finalize(self, model)
    layer = model.get_submodule(self.paths[0])
    plain = layer.forward
    layer.forward = lambda x: plain(x) * torch.linspace(0, 1, layer.out_features)


_calls = itertools.count()


def _is_random(self: Any, model: nn.Module) -> None:
    with torch.no_grad():
        for path in self.paths:
            _shift(model.get_submodule(path).bias, next(_calls))
    Honest.finalize(self, model)


def _is_random_on_the_way(self: Any, model: nn.Module, fraction: float) -> None:
    Honest.on_step(self, model, fraction)
    with torch.no_grad():
        _shift(model.get_submodule(self.paths[0]).bias, next(_calls))


class _Forgetful(Honest):
    """Keeps what it learned in the object instead of the model."""

    info = MethodInfo("forgetful", "f", "test", Category.PRUNING, Phase.STRUCTURE, (), Needs(training=True))
    Config = type("ForgetfulConfig", (StrictModel,), {"__module__": __name__})
    total = 0.0

    def on_step(self, model: nn.Module, fraction: float) -> None:
        self.total += fraction
        Honest.on_step(self, model, fraction)

    def finalize(self, model: nn.Module) -> None:
        with torch.no_grad():
            for path in self.paths:
                _shift(model.get_submodule(path).bias, self.total)
        Honest.finalize(self, model)


class _Wasteful(Honest):
    """Closes gates but slices nothing: zeros that still take their bytes."""

    info = MethodInfo("wasteful", "w", "test", Category.PRUNING, Phase.SPARSITY, ())
    Config = type("WastefulConfig", (StrictModel,), {"__module__": __name__})

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        self.paths = [b.down for b in blocks_of(model, ctx.family)]
        for path in self.paths:
            attach(model, path, ColumnGate(model.get_submodule(path).in_features, 1))
        return self.paths

    def on_step(self, model: nn.Module, fraction: float) -> None:
        for path in self.paths:
            model.get_submodule(path).parametrizations.weight[0].mask[::2] = fraction < 1

    def finalize(self, model: nn.Module) -> None:
        for path in self.paths:
            nn.utils.parametrize.remove_parametrizations(model.get_submodule(path), "weight", leave_parametrized=True)


class _Unforeseen(Honest):
    """Packs when it has seen data, and in a plan nothing at all."""

    info = MethodInfo("unforeseen", "u", "t", Category.QUANTIZATION, Phase.QUANT, (), Needs(calibration=True))
    Config = type("UnforeseenConfig", (StrictModel,), {"__module__": __name__})

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        self.paths = [path for b in blocks_of(model, ctx.family) for path in (*b.up, b.down, b.query, b.value)]
        return self.paths

    def observe(self, model: nn.Module, batches: Any) -> None:
        for path in self.paths:
            pack_(model, path)

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Nothing is left to do."""

    def finalize(self, model: nn.Module) -> None:
        """Everything is in place."""


CASE = MethodCase({}, lambda base, model: {"layers": 3})
BROKEN = [
    (contract.check_identity_at_zero, _variant("not_identity", on_step=_not_identity), "strength zero"),
    (contract.check_finalize_keeps_output, _variant("late", finalize=_changes_at_the_end), "finalize changes"),
    (contract.check_finalize_keeps_output, _variant("fake", finalize=_leaves_wrapper), "wrapper is left"),
    (contract.check_finalize_keeps_output, _variant("listener", finalize=_listens_on), "hook is left"),
    (contract.check_changes_something, _variant("idle", finalize=_does_nothing), "changes nothing"),
    (contract.check_changes_something, _Wasteful, "saves no bytes"),
    (contract.check_plan, _Unforeseen, "the plan says"),
    (contract.check_save_load, _variant("unsaved", finalize=_is_lost_on_save), "answers otherwise"),
    (contract.check_deterministic, _variant("random", finalize=_is_random), "other bytes"),
    (contract.check_deterministic, _variant("random_steps", True, on_step=_is_random_on_the_way), "other bytes"),
    (contract.check_resume, _variant("random_end", True, finalize=_is_random), "other weights"),
    (contract.check_report, _variant("liar", report=lambda self, model: {"layers": 99}), "does not agree"),
    (contract.check_resume, _Forgetful, "other weights"),
]


@pytest.fixture
def registered():
    """Register methods for one test only."""
    before = dict(registry._METHODS)
    yield registry.register
    registry._METHODS.clear()
    registry._METHODS.update(before)


@pytest.mark.parametrize(("check", "method", "message"), BROKEN, ids=lambda p: getattr(p, "__name__", None))
def test_check_rejects(check, method, message, registered, tmp_path):
    registered(method)
    with pytest.raises(AssertionError, match=message):
        check(contract.Subject(method, CASE, "bert", tmp_path))


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda c: c.__name__)
def test_check_accepts_the_honest_method(check, registered, tmp_path):
    registered(Honest)
    check(contract.Subject(Honest, CASE, "bert", tmp_path))
