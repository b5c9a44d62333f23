"""The kinds of movement pruning beyond heads and units: single weights, blocks, hybrid, filled, soft thresholds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import MethodCase
from contract import CHECKS, Subject
from tiny import HEADS, LAYERS, WIDTH, make

from hfcompress.core.families import blocks_of, family_of
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.methods.movement import Movement, MovementConfig
from hfcompress.modules.gate import BlockGate
from hfcompress.modules.parametrizations import find

COMMON = {"score_learning_rate": 0.1, "round_to": 4}
KINDS: dict[str, dict[str, Any]] = {
    "weights": {"weights": 0.5},
    "by-size": {"weights": 0.5, "init": "sizes"},
    "blocks": {"weights": 0.5, "block": [4, 8], "scope": "layer"},
    "hybrid": {"weights": 0.7, "block": [8, 8], "within": "attention", "ffn": 0.5},
    "filled": {"weights": 0.7, "block": [8, 8], "within": "attention", "ffn": 0.5, "filled": True},
    "soft": {"weights": 0.5, "selection": "threshold", "threshold": 0.45, "penalty": 50.0},
    "soft-l0": {"ffn": 0.5, "selection": "threshold", "threshold": 0.45, "penalty": 50.0, "penalty_norm": "l0"},
}


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("kind", "model"), [*((kind, "bert") for kind in KINDS), ("filled", "vit"), ("weights", "gpt2")]
)
def test_every_kind_keeps_the_contract(kind, model, tmp_path):
    subject = Subject(Movement, MethodCase(KINDS[kind] | COMMON), model, tmp_path)
    for check in CHECKS:
        if check.__name__ != "check_report":
            check(subject)


def prepared(model: torch.nn.Module, **settings: Any) -> Lifecycle:
    lifecycle = Lifecycle([Movement(MovementConfig(**settings))], training=True)
    lifecycle.prepare(model)
    generator = torch.Generator().manual_seed(1)
    for group in lifecycle.param_groups(model):
        for scores in group["params"]:
            scores.data.copy_(torch.randn(scores.shape, generator=generator))
    return lifecycle


def test_single_weights_are_removed_to_the_exact_share():
    model = make("bert")
    lifecycle = prepared(model, weights=0.75)
    lifecycle.finalize(model)
    paths = [p for b in blocks_of(model, family_of(model)) for p in (b.query, b.key, b.value, b.output, *b.up, b.down)]
    weights = torch.cat([model.get_submodule(p).dequantized().flatten() for p in paths])
    assert (weights == 0).sum() == round(0.75 * weights.numel())


def test_filled_brings_whole_heads_back_and_closes_the_others():
    model = make("bert")
    lifecycle = prepared(model, weights=0.9, block=(8, 8), within="attention", filled=True)
    lifecycle.step(model, 1.0)
    for block in blocks_of(model, family_of(model)):
        for path, axis in ((block.query, 0), (block.output, 1)):
            mask = find(model, path, BlockGate).mask
            heads = mask.view(HEADS, -1) if axis == 0 else mask.T.reshape(HEADS, -1)
            assert all(head.all() or not head.any() for head in heads)
    before = sum(len(b.query) > 0 for b in blocks_of(model, family_of(model)))
    report = lifecycle.finalize(model)["movement"]
    assert before == LAYERS and report["heads_after"] < report["heads_before"] == HEADS * LAYERS


def test_a_soft_threshold_is_pulled_down_to_the_share_and_not_below():
    model = make("bert")
    lifecycle = prepared(model, weights=0.5, selection="threshold", penalty=1.0)
    (group,) = lifecycle.param_groups(model)
    lifecycle.step(model, 1.0)
    method = lifecycle.methods[0]
    loss = method.extra_loss({}, None, None)
    loss.backward()
    assert loss > 0 and all((s.grad > 0).all() for s in group["params"])
    for scores in group["params"]:
        scores.data.fill_(-10.0)  # fewer than the share are kept now
    lifecycle.step(model, 1.0)
    assert method.extra_loss({}, None, None) == 0


def test_the_default_penalty_pulls_on_a_score_as_hard_as_the_tasks_gradient_is_likely_to_be():
    """Over N scores with G weights each, 500 / sqrt(G) on the mean is a pull of 500 sqrt(G) / (N G) on each."""
    pulls = []
    for settings in ({"weights": 0.5}, {"heads": 0.5}):
        model = make("bert")
        lifecycle = prepared(model, selection="threshold", **settings)
        (group,) = lifecycle.param_groups(model)
        for scores in group["params"]:
            scores.data.zero_()
        lifecycle.step(model, 1.0)
        lifecycle.methods[0].extra_loss({}, None, None).backward()
        weights = sum(model.get_submodule(b.output).weight.numel() for b in blocks_of(model, family_of(model)))
        behind = 1 if "weights" in settings else weights / (HEADS * LAYERS)
        total = behind * sum(s.numel() for s in group["params"])
        pulls += [float(s.grad.mean()) / (0.25 * 500 * behind**0.5 / total) for s in group["params"]]
    assert pulls == pytest.approx([1.0] * len(pulls), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "steps", "told"),
    [
        ({"weights": 0.5}, 200, True),
        ({"weights": 0.5}, 5000, False),
        ({"weights": 0.5, "init": "sizes"}, 200, False),
        ({"weights": 0.5, "block": (8, 8)}, 200, False),
        ({"heads": 0.5}, 200, False),
    ],
)
def test_too_few_steps_for_scores_that_begin_at_zero_are_told(settings, steps, told, caplog):
    model = make("bert")
    lifecycle = prepared(model, **settings)
    for step in range(steps // 2, steps // 2 + 3):  # as a resumed run sees it
        lifecycle.step(model, step / steps)
    assert ("have 200 steps" in caplog.text) == told
    assert caplog.text.count("begin at zero") == told


@pytest.mark.parametrize(("score", "told"), [(1.0, True), (-10.0, False)])
def test_a_soft_threshold_that_removed_too_little_is_told(score: float, told: bool, caplog):
    model = make("bert")
    lifecycle = prepared(model, weights=0.5, selection="threshold")
    (group,) = lifecycle.param_groups(model)
    for scores in group["params"]:
        scores.data.fill_(score)
    lifecycle.step(model, 1.0)
    lifecycle.finalize(model)
    assert ("soft thresholds removed 0% where 50% was asked for" in caplog.text) == told


def test_a_plan_takes_it_that_soft_thresholds_reach_the_share(caplog):
    model = make("bert")
    lifecycle = prepared(model, weights=0.5, selection="threshold")
    lifecycle.methods[0].assume(model)
    lifecycle.finalize(model)
    (path, *_) = [b.query for b in blocks_of(model, family_of(model))]
    assert not caplog.text and (model.get_submodule(path).dequantized() == 0).any()


def test_blocks_at_the_edge_may_be_smaller():
    gate = BlockGate((WIDTH + 2, WIDTH), 8, 8)
    gate.mask[-1] = False
    weight = gate(torch.ones(WIDTH + 2, WIDTH))
    assert gate.mask.shape == (5, 4) and weight[WIDTH:].sum() == 0 and weight[:WIDTH].min() == 1


@pytest.mark.parametrize("selection", ["top", "threshold"])
@pytest.mark.parametrize("block", [(1, 1), (5, 8)])
def test_scores_that_begin_at_the_size_first_remove_the_smallest(block: tuple[int, int], selection: str):
    """Blocks of the least mean square, as magnitude pruning removes; soft ones begin above the threshold."""
    model = make("bert")
    wanted = {"weights": 0.5, "block": block, "scope": "layer", "init": "sizes", "selection": selection}
    lifecycle = Lifecycle([Movement(MovementConfig(**wanted))], training=True)
    lifecycle.prepare(model)
    for path in [p for b in blocks_of(model, family_of(model)) for p in (b.query, *b.up, b.down)]:
        gate = find(model, path, BlockGate)
        weight = model.get_submodule(path).parametrizations.weight.original.detach()
        sizes = torch.stack(
            [torch.stack([p.square().mean() for p in row.split(block[1], 1)]) for row in weight.split(block[0], 0)]
        )
        assert torch.equal(gate.scores.detach().flatten().argsort(), sizes.flatten().argsort())
        assert selection == "top" or (torch.sigmoid(gate.scores) > 0.1).all()
