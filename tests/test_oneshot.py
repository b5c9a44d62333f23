"""One-shot removal of heads and feed-forward units: what goes, what the rest becomes, what a budget is spent on."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
from tiny import HEADS, LAYERS, UNITS, batch, calibration, logits, make
from torch import nn

from hfcompress.core.errors import DataError, TargetError
from hfcompress.core.families import blocks_of, family_of
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.methods.ffn import Ffn, FfnConfig
from hfcompress.methods.heads import Heads, HeadsConfig
from hfcompress.modules.cut import cuts
from hfcompress.modules.importance import fisher
from hfcompress.modules.parametrizations import wrapped
from hfcompress.ops import latency
from hfcompress.ops.allocation import allocate, dropped, keep_counts
from hfcompress.ops.reconstruction import InputMoments, refit, rescale

LAYOUTS = [(Heads, "bert"), (Heads, "gpt2"), (Heads, "llama"), (Heads, "swin")]  # every way heads or units are laid out
LAYOUTS += [(Ffn, "bert"), (Ffn, "gpt2"), (Ffn, "dinov2-swiglu"), (Ffn, "t5")]


def pruned(model: nn.Module, name: str, *, heads: dict | None = None, ffn: dict | None = None) -> dict:
    """Run the methods in one stage on calibration batches and return what they report."""
    methods = [Heads(HeadsConfig(**heads))] if heads else []
    methods += [Ffn(FfnConfig(**ffn))] if ffn else []
    lifecycle = Lifecycle(methods, training=False)
    lifecycle.prepare(model)
    lifecycle.observe(model, lambda: calibration(name))
    return lifecycle.finalize(model)


# ---------------------------------------------------------------- least squares


def problem(columns: int = 12, rows: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, InputMoments]:
    """Return correlated inputs, a weight and a bias, and the inputs' moments."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 4, generator=generator) @ torch.randn(4, columns, generator=generator) + 1.0
    x += 0.1 * torch.randn(400, columns, generator=generator)
    moments = InputMoments(columns, x.device)
    moments.add(x[:150])
    moments.add(x[150:])
    weight = torch.randn(rows, columns, generator=generator)
    return x, weight, torch.randn(rows, generator=generator), moments


@pytest.mark.parametrize("with_bias", [True, False])
def test_refit_is_least_squares(with_bias):
    x, weight, bias, moments = problem()
    bias = bias if with_bias else None
    keep = torch.arange(12) % 3 != 0
    target = nn.functional.linear(x, weight, bias)
    new, constant = refit(weight, bias, keep, moments.matrix, 1e-9)
    assert not new[:, ~keep].any()
    design = torch.cat([x[:, keep], torch.ones(len(x), 1)], 1) if with_bias else x[:, keep]
    best = torch.linalg.lstsq(design.double(), target.double()).solution
    residual = (design.double() @ best - target).square().sum()
    assert (nn.functional.linear(x, new, constant) - target).square().sum() == pytest.approx(float(residual), rel=1e-3)
    cut = nn.functional.linear(x, weight * keep, bias)
    assert (cut - target).square().sum() > 10 * residual


def test_refit_survives_columns_that_say_the_same():
    x, weight, bias, _ = problem()
    x[:, 1], x[:, 2] = x[:, 0], 0.0
    moments = InputMoments(12, x.device)
    moments.add(x)
    keep = torch.arange(12) < 6
    new, constant = refit(weight, bias, keep, moments.matrix, 0.01)
    assert new.isfinite().all() and constant.isfinite().all() and new.abs().max() < 20


def test_rescaling_finds_the_factor_of_each_group():
    x, weight, _, moments = problem()
    keep = torch.tensor([True, False, True, True])
    new = rescale(weight, keep, 3, moments.matrix, 1e-9)
    parts = [(x[:, g * 3 : g * 3 + 3] @ weight[:, g * 3 : g * 3 + 3].T).flatten() for g in (0, 2, 3)]
    best = torch.linalg.lstsq(torch.stack(parts, 1).double(), (x @ weight.T).flatten().double()).solution
    factors = (new / weight).view(5, 4, 3)
    assert factors[:, [0, 2, 3]].mean((0, 2)).tolist() == pytest.approx(best.tolist(), rel=1e-3)
    assert not new.view(5, 4, 3)[:, 1].any()


# ---------------------------------------------------------------- budgets


def test_allocation_is_the_best_of_all():
    generator = torch.Generator().manual_seed(1)
    errors = [torch.rand(4, generator=generator) for _ in range(3)]
    costs = [torch.tensor([1.0, 2.0, 5.0, 7.0]), torch.tensor([1.0, 1.5, 1.7, 2.0]), torch.tensor([2.0, 3.0, 4.0, 9.0])]
    chosen = allocate(errors, costs, 0.6)
    allowed = 0.6 * 18

    def value(options):
        return sum(float(e[o]) for e, o in zip(errors, options, strict=True))

    feasible = [
        o
        for o in itertools.product(range(4), repeat=3)
        if sum(float(c[i]) for c, i in zip(costs, o, strict=True)) <= allowed
    ]
    assert value(chosen) == min(map(value, feasible))


def test_a_count_is_met_exactly_and_layers_keep_what_they_need():
    scores = [torch.ones(24), torch.full((24,), 5.0), torch.full((20,), 0.1)]
    counts = keep_counts(scores, 8)
    assert [c.tolist() for c in counts] == [[8, 16, 24], [8, 16, 24], [8, 16, 20]]
    chosen = allocate(dropped(scores, counts), counts, 48 / 68)
    assert [int(c[o]) for c, o in zip(counts, chosen, strict=True)] == [16, 24, 8]
    with pytest.raises(TargetError, match="no more than 65% can be removed"):
        allocate(dropped(scores, counts), counts, 0.3)


def test_a_latency_table_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(latency, "measure", lambda widths, points, tokens: calls.append(1) or [3.0, 1.0, 4.0])
    widths, counts = latency.Widths(8, 4, 4, 8), torch.tensor([1, 2, 4])
    for _ in range(2):
        assert latency.seconds_by_count(widths, counts, 16).tolist() == [3.0, 3.0, 4.0]  # wider is never faster
    assert len(calls) == 1
    (file,) = tmp_path.glob("hfcompress/latency-*.json")
    assert json.loads(file.read_text())["key"]["torch"] == torch.__version__
    file.write_text("{")
    latency.seconds_by_count(widths, counts, 16)
    latency.seconds_by_count(widths, counts, 32)
    assert len(calls) == 3


def test_latency_is_really_timed():
    times = latency.measure(latency.Widths(16, 4, 4, 16), [1, 8], 4)
    assert len(times) == 2 and all(0 < t < 1 for t in times)


# ---------------------------------------------------------------- importance


def test_fisher_is_the_squared_gradient_of_a_mask_per_example():
    model, batches = make("bert"), calibration("bert")[:2]
    block = blocks_of(model, family_of(model))[1]
    found = fisher(model, {block.down: 1, block.output: block.head_size}, batches, 0)
    module = model.get_submodule(block.down)
    expected = torch.zeros(UNITS)
    for example in (
        dict(zip(b, v, strict=True)) for b in batches for v in zip(*(x.split(1) for x in b.values()), strict=True)
    ):
        mask = torch.ones(UNITS, requires_grad=True)
        handle = module.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask,))
        (gradient,) = torch.autograd.grad(model(**example).loss, mask)
        handle.remove()
        expected += gradient.square()
    assert torch.allclose(found[block.down].scores, expected, rtol=1e-3)
    assert found[block.output].scores.shape == (HEADS,) and found[block.down].tokens == 9
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_fisher_of_a_block_called_several_times_is_that_of_all_its_calls():
    """What goes of ALBERT's one block is missing in every pass, not in the last alone."""
    model, data = make("albert"), calibration("albert")[0]
    block = blocks_of(model, family_of(model))[0]
    found = fisher(model, {block.down: 1}, [data], 0)[block.down]
    size, module = len(data["labels"]), model.get_submodule(block.down)
    mask = torch.ones(size, module.in_features, requires_grad=True)
    handle = module.register_forward_pre_hook(lambda _, args: (args[0] * mask[:, None],))
    (gradient,) = torch.autograd.grad(model(**data).loss * size, mask)
    handle.remove()
    calls = model.config.num_hidden_layers
    assert calls > 1 and found.tokens == calls * data["input_ids"].shape[1] == calls * found.length
    assert torch.allclose(found.scores, gradient.square().sum(0), rtol=1e-3)


@pytest.mark.parametrize("name", ["bert", "llama-lm"])
def test_without_labels_the_model_labels(name):
    model = make(name)
    block = blocks_of(model, family_of(model))[0]
    bare = [{k: v for k, v in b.items() if k != "labels"} for b in calibration(name)]
    first, second = (fisher(model, {block.down: 1}, bare, 3)[block.down].scores for _ in range(2))
    assert first.min() > 0 and torch.equal(first, second)
    with pytest.raises(DataError, match="no calibration"):
        fisher(model, {block.down: 1}, [], 0)


# ---------------------------------------------------------------- the methods


def without_use(model: nn.Module, useless: int = 24) -> None:
    """Make the model blind to half of the heads and to some of the units of every block."""
    for block in blocks_of(model, family_of(model)):
        model.get_submodule(block.output).weight.data[:, : 2 * block.head_size] = 0
        model.get_submodule(block.down).weight.data[:, 8 : 8 + useless] = 0


def test_what_is_of_no_use_goes_and_nothing_changes():
    model = make("bert")
    without_use(model)
    before = logits(model, "bert")
    report = pruned(model, "bert", heads={"remove": 0.5}, ffn={"remove": 24 / UNITS})
    assert report["heads"]["heads_after"] == LAYERS * HEADS / 2
    assert [report["ffn"][f"layer{i}_units"] for i in range(LAYERS)] == [UNITS - 24] * LAYERS
    assert torch.allclose(logits(model, "bert"), before, atol=1e-4)
    assert model.bert.encoder.layer[0].attention.self.query.out_features == 16


@torch.no_grad()
def outputs(model: nn.Module, name: str, path: str) -> torch.Tensor:
    """Return what the layer at `path` gives on the calibration data."""
    found: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _, __, output: found.append(output))
    for each in calibration(name):
        model(**each)
    handle.remove()
    return torch.cat([f.flatten(0, -2) for f in found])


@pytest.mark.parametrize(("method", "name"), LAYOUTS)
def test_refitting_comes_closer_than_cutting(method, name):
    errors = {}
    for tune in ("none", "mask", "weights"):
        base, model = make(name), make(name)
        lifecycle = Lifecycle([method(method.Config(remove=0.5, tune=tune, ridge=1e-6))], training=False)
        paths = lifecycle.prepare(model)[method.info.name]
        lifecycle.observe(model, lambda: calibration(name))
        cut = {path: found for path, found, _ in cuts(model)}
        first = next(path for path in paths if not cut[path].keep.all())  # all layers before it are whole
        lifecycle.finalize(model)
        errors[tune] = float((outputs(model, name, first) - outputs(base, name, first)).square().mean())
    assert errors["weights"] < 0.97 * errors["mask"] and errors["mask"] < errors["none"]


def test_the_stage_is_seen_before_it_is_permanent():
    model = make("bert")
    before = logits(model, "bert")
    lifecycle = Lifecycle([Heads(HeadsConfig(remove=0.5)), Ffn(FfnConfig(remove=0.5))], training=False)
    lifecycle.prepare(model)
    lifecycle.observe(model, lambda: calibration("bert"))
    lifecycle.step(model, 0.0)
    assert torch.equal(logits(model, "bert"), before)
    lifecycle.step(model, 1.0)
    during = logits(model, "bert")
    assert not torch.allclose(during, before, atol=1e-3)
    lifecycle.finalize(model)
    assert torch.allclose(logits(model, "bert"), during, atol=1e-5)
    assert not wrapped(model) and all(p.requires_grad for p in model.parameters())


def test_both_methods_fit_on_what_the_other_leaves():
    """The one that comes first is fitted again: its layers then read what the second one leaves."""
    model = make("bert")
    settings = {"remove": 0.5, "ridge": 1e-3}
    lifecycle = Lifecycle([Heads(HeadsConfig(**settings)), Ffn(FfnConfig(**settings))], training=False)
    lifecycle.prepare(model)
    first, second = lifecycle.methods
    first.observe(model, calibration("bert"))
    values = [cut.value.clone() for _, cut, _ in cuts(model) if cut.chosen]
    assert len(values) == LAYERS
    second.observe(model, calibration("bert"))
    again = [cut for path, cut, _ in cuts(model) if cut.size == 1]
    assert len(again) == LAYERS and not torch.allclose(again[-1].value, values[-1], atol=1e-4)


@pytest.mark.parametrize("budget", ["count", "parameters", "flops", "latency"])
def test_every_budget_is_kept(budget, monkeypatch):
    monkeypatch.setattr("hfcompress.modules.removal.seconds_by_count", lambda widths, counts, tokens: counts + 2.0)
    model = make("bert")
    report = pruned(model, "bert", ffn={"remove": 0.4, "budget": budget, "round_to": 4})["ffn"]
    counts = [report[f"layer{i}_units"] for i in range(LAYERS)]
    share = (
        sum(c + 2 for c in counts) / sum(UNITS + 2 for _ in counts)
        if budget == "latency"
        else sum(counts) / (LAYERS * UNITS)
    )
    assert 0.5 < share <= 0.6 and all(c % 4 == 0 for c in counts)


def test_layers_that_cost_more_lose_more_under_their_budget(monkeypatch):
    base = make("swin")
    kept = {}
    for budget in ("count", "parameters"):
        model = copy.deepcopy(base)
        kept[budget] = pruned(model, "swin", ffn={"remove": 0.5, "budget": budget})["ffn"]["units_after"]
    assert kept["parameters"] != kept["count"]


def test_more_than_there_is_is_refused():
    with pytest.raises(TargetError, match="no more than 75% can be removed"):
        Lifecycle([Heads(HeadsConfig(remove=0.9))], training=False).prepare(make("bert"))


def test_grouped_queries_go_with_their_key():
    model = make("llama-lm")
    report = pruned(model, "llama-lm", heads={"remove": 0.5})["heads"]
    assert report["heads_after"] == report["heads_before"] / 2
    assert model(**batch("llama-lm")).logits.isfinite().all()
