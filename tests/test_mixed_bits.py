"""Bits per layer under a budget: what is measured, what is chosen, and that it beats the same bits everywhere."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from tiny import calibration, make
from torch import nn

from hfcompress import MixedBitsConfig, QuantizeWeightsConfig
from hfcompress.core.errors import DataError, RecipeError, TargetError
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.registry import create
from hfcompress.methods.mixed_bits import MixedBits
from hfcompress.modules.packed import pack_
from hfcompress.modules.sensitivity import output_divergences, stored_bytes
from hfcompress.ops.quantization import Grid
from hfcompress.train.compress import compress

QUERY, DOWN = "bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense"
CHOICES = [2, 4, 8]


def layers(model: nn.Module) -> list[str]:
    """Return the packed layers."""
    return [path for path, module in model.named_modules() if hasattr(module, "quantized")]


def stored(model: nn.Module) -> int:
    """Return the bytes of their weights."""
    modules = [model.get_submodule(path) for path in layers(model)]
    return sum(p.nbytes for m in modules for name, p in m.named_parameters() if name != "bias")


def divergence(model: nn.Module, base: nn.Module) -> float:
    """Return KL(base || model) on the calibration batches, spelt out."""
    total = 0.0
    for batch in calibration("bert"):
        with torch.no_grad():
            p, q = (m.eval()(**batch).logits.double().softmax(-1) for m in (base, model))
        total += float((p * (p / q).log()).sum(-1).mean())
    return total / len(calibration("bert"))


def test_the_divergence_is_that_of_a_model_with_those_layers_rounded():
    model = make("bert")
    before = copy.deepcopy(model.state_dict())
    roundings = [{QUERY: Grid(2)}, {DOWN: Grid(2)}, {QUERY: Grid(8)}, {QUERY: Grid(2), DOWN: Grid(4)}]
    found = output_divergences(model, calibration("bert"), roundings)
    for rounding, error in zip(roundings, found, strict=True):
        rounded = make("bert")
        for path, grid in rounding.items():
            pack_(rounded, path, grid)
        assert error == pytest.approx(divergence(rounded, make("bert")), rel=1e-3, abs=1e-7)
    assert found[0] > found[2] >= 0
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
    with pytest.raises(DataError):
        output_divergences(model, [], roundings)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_answers_that_exclude_no_other_diverge_too(problem):
    model = make("bert")
    model.config.problem_type = problem
    batches = [{"input_ids": batch["input_ids"]} for batch in calibration("bert")]
    (found,) = output_divergences(model, batches, [{QUERY: Grid(2)}])
    pack_(model, QUERY, Grid(2))
    with torch.no_grad():
        x, y = (torch.cat([m(**batch).logits for batch in batches]).double() for m in (make("bert"), model))
    p, q = (torch.stack([z.sigmoid(), 1 - z.sigmoid()]) for z in (x, y))
    wanted = (x - y).square().mean() if problem == "regression" else (p * (p / q).log()).sum(0).mean()
    assert found == pytest.approx(float(wanted), rel=1e-3)


def test_tied_layers_are_measured_together_and_stay_tied():
    model = make("gpt2-lm")
    wide, narrow = ({"transformer.wte": Grid(bits)} for bits in (8, 2))
    found = output_divergences(model, calibration("gpt2-lm")[:1], [narrow, wide])
    assert found[0] > found[1]
    assert model.lm_head.weight is model.transformer.wte.weight and not layers(model)


def test_the_choice_is_the_best_of_all_within_the_budget():
    paths = [f"bert.encoder.layer.{i}.output.dense" for i in range(3)]
    settings = {"budget_mb": 0.0041, "choices": CHOICES, "targets": paths, "batches": 4, "clip": "max"}
    model = compress(make("bert"), MixedBitsConfig(**settings), calibration=calibration("bert"))
    chosen = [CHOICES.index(model.get_submodule(path).grid.bits) for path in paths]
    grids = [Grid(bits) for bits in CHOICES]
    single = output_divergences(make("bert"), calibration("bert"), [{p: g} for p in paths for g in grids])
    errors = torch.tensor(single).view(3, 3)
    costs = [[stored_bytes(make("bert").get_submodule(path), grid) for grid in grids] for path in paths]

    def total(values, options) -> float:
        return sum(float(value[option]) for value, option in zip(values, options, strict=True))

    within = [c for c in itertools.product(range(3), repeat=3) if total(costs, c) <= 4100]
    assert len(within) > 5
    assert total(errors, chosen) == min(total(errors, option) for option in within)
    assert stored(model) == total(costs, chosen)


def uneven(seed: int = 0) -> nn.Module:
    """Return the tiny model, one layer with large weights in every row, beside which few bits leave the others zero."""
    model = make("bert", seed)
    model.get_submodule(DOWN).weight.data[:, 0] *= 100
    return model


@pytest.mark.parametrize(("base", "gain"), [(uneven, 0.6), (lambda: make("bert"), 1.0)])
def test_it_beats_the_same_bits_everywhere_or_is_them(base, gain):
    same = compress(base(), QuantizeWeightsConfig(bits=4))
    config = MixedBitsConfig(budget_mb=stored(same) / 1e6, batches=4, clip="max")
    mixed = compress(base(), config, calibration=calibration("bert"))
    assert layers(mixed) == layers(same) and stored(mixed) <= stored(same)
    assert divergence(mixed, base()) <= gain * divergence(same, base()) + 1e-9


def test_in_a_plan_all_layers_get_the_same_bits_within_the_budget():
    model, lifecycle = make("bert"), Lifecycle([MixedBits(MixedBitsConfig(average_bits=5))], training=False)
    lifecycle.prepare(model)
    lifecycle.assume(model)
    report = lifecycle.finalize(model)["mixed_bits"]
    assert report["layers_4_bits"] == report["layers"] and 4 < report["bits_per_weight"] <= 5


def test_a_budget_that_no_choice_keeps_is_refused_with_the_least():
    with pytest.raises(TargetError, match=r"the fewest bits take .* MB or 2\.\d"):
        compress(make("bert"), MixedBitsConfig(average_bits=2), calibration=calibration("bert"))
    for settings in ({}, {"average_bits": 4, "budget_mb": 1}):
        with pytest.raises(RecipeError, match="either average_bits"):
            create("mixed_bits", settings)
