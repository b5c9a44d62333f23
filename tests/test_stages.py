"""Methods that meet: what a stage does with layers an earlier one packed, and phases of one stage after each other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import CASES
from tiny import batch, calibration, corpus, logits, make, processor

from hfcompress.core.errors import HFCompressError, LifecycleError, TargetError
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.method import Phase
from hfcompress.core.registry import create, get, list_methods
from hfcompress.modules.packed import PackedLinear, weight_matrix
from hfcompress.recipe.plan import Plan, make_plan
from hfcompress.recipe.schema import Recipe
from hfcompress.train.compress import compress, run_oneshot
from hfcompress.train.stages import StageMethods

PRUNED, QUANTIZED = {"wanda": {"sparsity": 0.5}}, {"quantize_weights": {}}
QUANT = [name for name, method in list_methods().items() if method.info.phase is Phase.QUANT]
Settings = dict[str, dict[str, Any]]


def plan(*stages: Settings) -> Plan:
    """Return the plan of these stages for the tiny BERT; those with a method that trains train."""
    written = []
    for methods in stages:
        needs = [create(name, settings).needs for name, settings in methods.items()]
        trains = any(need.training for need in needs)
        written.append({"methods": methods, "train": {"max_steps": 1}} if trains else {"methods": methods})
    recipe = Recipe.model_validate(
        {"model": "bert", "task": "text-classification", "data": {"path": "data"}, "stages": written}
    )
    common = {"recipe_hash": "", "train_examples": 8, "evaluate_examples": 8}
    return make_plan(recipe, make("bert"), processor=processor("bert"), corpus=corpus("bert"), **common)


def configs(methods: Settings) -> list[Any]:
    """Return the configs of methods that act in one stage."""
    return [get(name).Config(**settings) for name, settings in methods.items()]


def linear(model: torch.nn.Module) -> dict[str, Any]:
    """Return the linear layers inside the blocks."""
    return {p: m for p, m in model.named_modules() if ".layer." in p and isinstance(m, torch.nn.Linear | PackedLinear)}


@pytest.mark.fast_cases(18)
@pytest.mark.parametrize("first", [PRUNED, QUANTIZED], ids=lambda first: next(iter(first)))
@pytest.mark.parametrize("second", list_methods())
def test_a_plan_after_packed_layers_ends_well_or_says_why(first, second):
    try:
        planned = plan(first, {second: CASES[second].settings})
    except HFCompressError as error:
        if second in ("heads", "ffn"):
            assert "encoder.layer.0" in str(error) and "prune heads and units first" in str(error)
        return
    assert len(planned.stages) == 2


@pytest.mark.parametrize("name", QUANT)
def test_pruned_layers_are_quantized_like_others(name):
    stage = {name: CASES[name].settings}
    alone, after = plan(stage).stages[0], plan(PRUNED, stage).stages[1]
    assert after.methods[0].targets == alone.methods[0].targets


@pytest.mark.parametrize("name", [name for name in QUANT if "product" not in name])  # which acts on tables alone
def test_layers_in_few_bits_are_refused_by_name(name):
    with pytest.raises(TargetError, match=r"(?s)bert\..* bits already"):
        plan(QUANTIZED, {name: CASES[name].settings})


@pytest.mark.parametrize("name", [name for name in QUANT if name != "quantize_weights"])
def test_two_methods_of_a_stage_do_not_store_one_weight(name):
    """The one that came later rounded what the other had stored: its bits with the other's error."""
    settings = CASES[name].settings
    with pytest.raises(
        TargetError, match=rf"two methods of this stage claim its weight, .*{name}.* the `ignore` of one"
    ):
        plan({name: settings, "quantize_weights": {}})
    apart = {"targets": ["re:.*word_embeddings"]}
    apart = {"ignore": apart["targets"]} if "product" in name else apart
    settings = settings if "product" in name else {**settings, "targets": ["re:.*query"]}
    assert len(plan({name: settings, "quantize_weights": apart}).stages[0].methods) == 2


def test_two_methods_of_a_stage_do_not_store_weights_that_are_tied():
    head = {"quantize_weights": {"targets": ["lm_head"]}}
    table = {"product_quantization": {"codewords": 16, "targets": ["transformer.wte"]}}
    with pytest.raises(TargetError, match="two methods of this stage claim its weight"):
        compress(make("gpt2-lm"), configs(table | head))


@pytest.mark.parametrize("stage", [{"smooth_quant": {}}, {"bitsandbytes": {"mode": "nf4"}}], ids=str)
def test_zeros_of_an_earlier_stage_stay_zero(stage):
    model = compress(make("bert"), configs(PRUNED), calibration=calibration("bert"))
    zeros = {path: weight_matrix(module) == 0 for path, module in linear(model).items()}
    before = logits(model, "bert")
    compress(model, configs(stage), calibration=calibration("bert"))
    assert not any(isinstance(m, PackedLinear) and m.grid is None for m in model.modules())
    if "smooth_quant" in stage:
        assert all(m.sparse and m.input_bits == 8 for m in linear(model).values())
        assert torch.allclose(logits(model, "bert"), before, atol=0.05 * float(before.abs().max()))
    model.dequantize()
    assert all(module.weight[zeros[path]].count_nonzero() == 0 for path, module in linear(model).items())


@pytest.mark.parametrize("stored", ["qat", "cluster_weights"])
@pytest.mark.parametrize("cuts", ["movement", "positions"])
def test_what_trains_how_layers_are_stored_is_refused_beside_what_cuts_them(stored, cuts):
    settings = {name: CASES[name].settings for name in (cuts, stored)}
    with pytest.raises(LifecycleError, match=f"{stored} trains how layers are stored that {cuts} cuts"):
        Lifecycle([create(*pair) for pair in settings.items()], training=True)


@pytest.mark.parametrize("kind", [{"bits": 4, "group_size": 8}, {"bits": "ternary"}, {"bits": "binary"}], ids=str)
def test_what_is_cut_and_quantized_in_one_stage_is_rounded_once(kind):
    def pruned(methods: Settings) -> torch.nn.Module:
        model = make("bert")
        lifecycle = Lifecycle([create(*pair) for pair in methods.items()], training=True)
        lifecycle.prepare(model)
        generator = torch.Generator().manual_seed(1)
        gates = next(method for method in lifecycle.methods if method.info.name == "movement")
        for scores in gates.param_groups(model)[0]["params"]:
            scores.data += torch.randn(scores.shape, generator=generator)
        lifecycle.finalize(model)
        return model

    movement = {"movement": {"heads": 0.5, "ffn": 0.5, "round_to": 4}}
    together = pruned(movement | {"quantize_weights": kind})
    after = compress(pruned(movement), configs({"quantize_weights": kind}))
    assert torch.equal(logits(together, "bert"), logits(after, "bert"))


def test_training_under_rounding_keeps_zeros_out_of_the_file():
    model = compress(make("bert"), configs(PRUNED), calibration=calibration("bert"))
    zeros = {path: weight_matrix(module) == 0 for path, module in linear(model).items()}
    count = {path: module.nonzeros for path, module in linear(model).items()}
    lifecycle = Lifecycle([create("qat", {"start": 0.0})], training=True)
    lifecycle.prepare(model)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for fraction in (0.0, 0.5, 1.0):
        lifecycle.step(model, fraction)
        model(**batch("bert"), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    during = logits(model, "bert")
    lifecycle.finalize(model)
    assert torch.allclose(logits(model, "bert"), during, atol=1e-5)
    for path, module in linear(model).items():
        assert module.sparse and module.grid.bits == 8 and module.input_bits == 8
        assert module.dequantized()[zeros[path]].count_nonzero() == 0
        assert module.nonzeros <= count[path]


HEADS, UNITS = {"heads": {"remove": 0.25}}, {"ffn": {"remove": 0.5, "round_to": 4}}
MIXED = {"average_bits": 7, "choices": [4, 8], "batches": 1, "targets": ["re:.*layer.0.*dense"]}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (HEADS, {"gptq": {"group_size": 16}}),
        (UNITS, {"smooth_quant": {}}),
        (HEADS, {"mixed_bits": MIXED}),
        (UNITS, {"wanda": {}}),
    ],
    ids=lambda stage: next(iter(stage)),
)
def test_phases_of_one_stage_act_like_stages(first, second):
    """What is packed is what is left: the same as the later phase in a stage of its own, in the plan and in the run."""
    one, two = plan(first | second).stages[-1], plan(first, second).stages[-1]
    assert (one.weight_bytes, one.parameters) == (two.weight_bytes, two.parameters)
    whole = compress(make("bert"), configs(first | second), calibration=calibration("bert")).state_dict()
    apart = make("bert")
    for stage in (first, second):
        compress(apart, configs(stage), calibration=calibration("bert"))
    assert whole.keys() == apart.state_dict().keys()
    assert all(torch.equal(value, whole[key]) for key, value in apart.state_dict().items())


def test_zeros_and_bits_of_one_stage_are_both_kept():
    """The masks were in force only at the end, when everything had been packed without them."""
    model = compress(make("bert"), configs({"magnitude": {}, "gptq": {"bits": 8}}), calibration=calibration("bert"))
    for module in linear(model).values():
        assert module.sparse and module.grid.bits == 8 and float((module.dequantized() == 0).float().mean()) >= 0.5


def test_data_read_before_the_tokenizer_changes_is_not_calibrated_on():
    with pytest.raises(LifecycleError, match=r"gptq reads calibration data, which vocabulary.* in a later stage"):
        plan({"vocabulary": {}, "gptq": {}})
    assert len(plan({"vocabulary": {}, "quantize_weights": {}}).stages) == 1


def test_batches_are_read_where_the_model_is(monkeypatch):
    """Some methods moved them and others did not, which met a model on another device with an error."""
    method, seen = get("layers"), []
    monkeypatch.setattr(method, "observe", lambda self, model, batches: seen.extend(batches))
    settings = method.Config(keep=2, choose="importance")
    stage = StageMethods("test", [method(settings)], None)
    run_oneshot(make("bert").to("meta"), stage, calibration=calibration("bert"))
    assert {value.device.type for each in seen for value in each.values()} == {"meta"}


def test_a_stage_that_trains_stays_whole():
    methods = [create("magnitude", {}), create("quantize_weights", {}), create("distill", {})]
    trained = Lifecycle(copy.deepcopy(methods), training=True)
    assert trained.passes() == [trained]
    assert [len(part.methods) for part in Lifecycle(methods[:2], training=False).passes()] == [1, 1]


def test_targets_name_pruned_layers_by_the_class_they_stand_for_and_quantized_ones_no_more():
    """`Linear` means the layers that still hold floats, whether or not an earlier stage left their zeros out."""
    model = compress(make("bert"), configs(PRUNED), calibration=calibration("bert"))
    pruned = {path for path, layer in linear(model).items() if isinstance(layer, PackedLinear)}
    model = compress(model, configs({"quantize_weights": {"targets": ["Linear"], "ignore": ["re:.*layer.1"]}}))
    done = {path for path, layer in linear(model).items() if getattr(layer, "grid", None) is not None}
    assert pruned and done == {path for path in pruned if "layer.1" not in path}
    model = compress(model, configs({"quantize_weights": {"bits": 4, "targets": ["Linear"]}}))
    grids = {path: layer.grid.bits for path, layer in linear(model).items()}
    assert grids == {path: 8 if path in done else 4 for path in pruned}
