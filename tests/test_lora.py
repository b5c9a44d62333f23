"""LoRA: what trains, what it leaves in float, packed, bitsandbytes and shared layers, and what is refused."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch
from peft import LoraConfig
from tiny import WITH_LINEAR, Examples, auto_class, logits, make
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from hfcompress import (
    BitsandbytesConfig,
    DistillConfig,
    HFCompressTrainer,
    LoRAConfig,
    QuantizeWeightsConfig,
    SVDConfig,
    WandaConfig,
    compress,
)
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import LifecycleError, RecipeError, TargetError
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.registry import create
from hfcompress.modules.adapted import Adapted
from hfcompress.modules.adapters import adapter_layers, adapter_parameters
from hfcompress.modules.bnb import BnbFormat, is_bnb
from hfcompress.modules.bnb_quantized import BnbRounded
from hfcompress.modules.chains import block_layers
from hfcompress.modules.companion import companion_parameters
from hfcompress.modules.storage import Packed
from hfcompress.recipe.plan import make_plan
from hfcompress.recipe.schema import Recipe

ALL = WITH_LINEAR


def prepared(model: nn.Module, **settings) -> Lifecycle:
    """Put adapters on, with values as after a training."""
    cycle = Lifecycle([create("lora", {"r": 2, **settings})], training=True)
    cycle.prepare(model)
    generator = torch.Generator().manual_seed(3)
    for parameter in adapter_parameters(model):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return cycle


def trainer(model: nn.Module, name: str, folder, *recipe, **more) -> HFCompressTrainer:
    more = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **more}
    args = TrainingArguments(
        str(folder), learning_rate=1e-2, report_to=[], logging_strategy="no", use_cpu=True, disable_tqdm=True, **more
    )
    return HFCompressTrainer(model=model, args=args, train_dataset=Examples(name), recipe=list(recipe))


def tied(name: str = "bert") -> nn.Module:
    """Return a model whose second block has the feed-forward weights of the first."""
    model = make(name)
    ties = {}
    for layer in ("intermediate.dense", "output.dense"):
        first, second = (model.get_submodule(f"bert.encoder.layer.{i}.{layer}") for i in (0, 1))
        second.weight = first.weight
        ties[f"bert.encoder.layer.1.{layer}.weight"] = f"bert.encoder.layer.0.{layer}.weight"
    model.all_tied_weights_keys = {**model.all_tied_weights_keys, **ties}
    return model


@pytest.mark.parametrize("name", ALL)
def test_merged_adapters_compute_the_same_and_leave_nothing(name):
    model, before = make(name), logits(make(name), name)
    cycle = prepared(model)
    adapted = logits(model, name)
    assert not torch.allclose(adapted, before, atol=1e-3)
    report = cycle.finalize(model)["lora"]
    assert torch.allclose(logits(model, name), adapted, atol=1e-4)
    assert model.state_dict().keys() == make(name).state_dict().keys()
    assert report["merged"] == len(block_layers(model)) and report["kept"] == 0
    assert all(p.requires_grad for p in model.parameters()) and not hasattr(model, "peft_config")


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq", "loftq_iterations": 2},
        {"lora_bias": True},
        {"rank_pattern": {"query": 4}, "alpha_pattern": {"query": 2}},
        {"targets": ["Linear", "Embedding"], "ignore": ["re:.*(pooler|classifier)", "re:.*(position|token_type)"]},
    ],
    ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items())[:30],
)
def test_what_peft_offers_merges(settings):
    model = make("bert")
    cycle = prepared(model, **settings)
    adapted = logits(model, "bert")
    cycle.finalize(model)
    assert torch.allclose(logits(model, "bert"), adapted, atol=1e-4)
    assert not list(adapter_layers(model)) and model.state_dict().keys() == make("bert").state_dict().keys()


def test_a_convolution_takes_an_adapter():
    model = make("vit")
    cycle = prepared(model, targets=["Conv2d"])
    adapted = logits(model, "vit")
    cycle.finalize(model)
    assert torch.allclose(logits(model, "vit"), adapted, atol=1e-5)


def test_only_adapters_train_and_what_is_named_beside_them(tmp_path):
    before = make("bert").state_dict()
    run = trainer(make("bert"), "bert", tmp_path, LoRAConfig(r=2, modules_to_save=["classifier"]))
    run.train()
    changed = {n for n, t in run.model.state_dict().items() if not torch.equal(t, before[n])}
    paths = {f"{path}.weight" for path, _ in block_layers(make("bert"))}
    assert changed == paths | {"classifier.weight", "classifier.bias"}


QUANTIZED = {
    "int8": QuantizeWeightsConfig(),
    "3 bits": QuantizeWeightsConfig(bits=3, group_size=16),
    "zeros": WandaConfig(sparsity=0.6),
    "nf4": BitsandbytesConfig(mode="nf4", double_quant=True),
    "llm.int8": BitsandbytesConfig(mode="int8"),
}


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("form", QUANTIZED)
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_beside_codes_adapters_stay_and_load_with_the_model(name, form, tmp_path):
    from tiny import calibration

    model = compress(make(name), QUANTIZED[form], calibration=calibration(name))
    codes = {n: t.clone() for n, t in model.state_dict().items()}
    run = trainer(model, name, tmp_path / "t", LoRAConfig(r=2), DistillConfig())
    run.train()
    model = run.model.eval()
    kept = [m for m in model.modules() if isinstance(m, Adapted)]
    assert len(kept) == run.compression_report["lora"]["kept"] == len(block_layers(make(name)))
    assert all(isinstance(m.base, Packed) or is_bnb(m.base) for m in kept)
    assert any(m.up.weight.any() for m in kept)
    state = {n.replace(".base.", "."): t for n, t in model.state_dict().items() if n.endswith(("_codes", "_mask"))}
    assert all(torch.equal(t, codes[n]) for n, t in state.items())
    first = save_checkpoint(model, tmp_path / "first")
    loaded = load_model(first, auto_class(name))
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert torch.allclose(logits(loaded, name), logits(model, name), atol=1e-5)
    loaded.save_pretrained(tmp_path / "second")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "second" / file).read_bytes() == (first / file).read_bytes()


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("form", ["int8", "nf4", "llm.int8", "dora"])
def test_resumed_equals_uninterrupted(form, tmp_path):
    def fresh() -> nn.Module:
        return make("bert") if form == "dora" else compress(make("bert"), QUANTIZED[form])

    config = LoRAConfig(r=2, use_dora=form == "dora")
    whole = trainer(fresh(), "bert", tmp_path, config)
    whole.train()
    resumed = trainer(fresh(), "bert", tmp_path, config)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
def test_layers_that_share_a_weight_share_the_adapter(settings, tmp_path):
    model = tied()
    cycle = prepared(model, **settings)
    parts = [model.get_submodule(f"bert.encoder.layer.{i}.output.dense") for i in (0, 1)]
    assert parts[0].lora_A["default"].weight is parts[1].lora_A["default"].weight
    adapted = logits(model, "bert")
    report = cycle.finalize(model)["lora"]
    assert torch.allclose(logits(model, "bert"), adapted, atol=1e-5)
    assert report["merged"] == len(block_layers(model)) - 2
    layers = model.bert.encoder.layer
    assert layers[0].output.dense.weight is layers[1].output.dense.weight


def test_kept_on_purpose_then_quantized_below_as_loftq_wants(tmp_path):
    settings = {"init_lora_weights": "loftq", "loftq_iterations": 3, "keep": True, "r": 8}
    start = make("bert")
    Lifecycle([create("lora", settings)], training=True).prepare(start)
    before, lost, rounded = make("bert").requires_grad_(False), 0.0, 0.0
    nf4 = BnbRounded(BnbFormat("nf4"))
    nf4.on.fill_(True)
    for path, layer in adapter_layers(start):
        weight = before.get_submodule(path).weight
        kept = layer.get_base_layer().weight + layer.get_delta_weight("default")
        lost, rounded = lost + (kept - weight).norm() ** 2, rounded + (nf4(weight) - weight).norm() ** 2
    assert lost < 0.5 * rounded, "the adapters do not make up for the rounding"
    model = make("bert")
    cycle = prepared(model, **settings)
    adapted = logits(model, "bert")
    assert cycle.finalize(model)["lora"]["kept"] == len(block_layers(make("bert")))
    assert torch.allclose(logits(model, "bert"), adapted, atol=1e-5)
    compress(model, BitsandbytesConfig(targets=[r"re:.*\.base$"]))
    assert torch.allclose(logits(model, "bert"), adapted, atol=1e-4), "the base was on the grid already"
    loaded = load_model(save_checkpoint(model, tmp_path), auto_class("bert"))
    assert torch.allclose(logits(loaded, "bert"), logits(model, "bert"), atol=1e-5)


def test_factors_take_adapters(tmp_path):
    model = compress(make("bert"), SVDConfig(rank=5))
    cycle = prepared(model)
    adapted = logits(model, "bert")
    cycle.finalize(model)
    assert torch.allclose(logits(model, "bert"), adapted, atol=1e-4)
    load_model(save_checkpoint(model, tmp_path), auto_class("bert"))


def test_a_learning_rate_of_their_own(tmp_path):
    run = trainer(make("bert"), "bert", tmp_path, LoRAConfig(r=2, learning_rate=0.5))
    groups = run.create_optimizer().param_groups
    assert groups[-1]["lr"] == 0.5 and sum(p.requires_grad for g in groups[:-1] for p in g["params"]) == 0


def test_a_loader_that_does_not_know_adapters_fails(tmp_path):
    import transformers

    model = make("bert")
    prepared(model, keep=True).finalize(model)
    save_checkpoint(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("quantization_config", "attn_implementation", "experts_implementation"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_what_trains_beside_the_model_is_not_frozen():
    """The projection of a distillation between models of other widths stayed as it started."""
    model = make("bert")
    teacher = BertForSequenceClassification(BertConfig(**{**model.config.to_dict(), "hidden_size": 48}))
    settings = {"distill": {"hidden": 1.0}, "lora": {"r": 2}}
    cycle = Lifecycle([create(*pair) for pair in settings.items()], training=True)
    cycle.prepare(model, teacher=teacher)
    trained = {p for p in model.parameters() if p.requires_grad}
    beside = set(companion_parameters(model))
    assert beside and trained == beside | set(adapter_parameters(model))
    report = cycle.finalize(model)["lora"]
    assert report["trained_parameters"] == sum(p.numel() for p in trained - beside)


def test_a_plan_knows_that_a_quantized_base_trains_through_adapters():
    def plan(methods):
        stages = [{"methods": {"bitsandbytes": {}}}, {"methods": methods, "train": {"max_steps": 2}}]
        recipe = Recipe.model_validate(
            {"model": "x", "task": "text-classification", "data": {"path": "x"}, "stages": stages}
        )
        return make_plan(recipe, make("bert"), recipe_hash="", train_examples=8, evaluate_examples=8)

    assert plan({"lora": {"r": 2}, "distill": {}}).stages[1].methods[0].targets
    with pytest.raises(LifecycleError, match="add adapters"):
        plan({"distill": {}})


def test_mistakes_are_named():
    known = {field.name for field in fields(LoraConfig)}  # those of a newer peft come later
    kasa = [({"keep": True, "kasa_config": {"beta": 1e-4}}, "kasa_config can only be merged")]
    kasa = kasa if "kasa_config" in known else []
    for settings, match in (
        ({"lora_alfa": 3}, r"lora: unknown key 'lora_alfa'\. Did you mean 'lora_alpha'"),
        ({"use_dorra": True}, "Did you mean 'use_dora'"),
        ({"target_modules": ["query"]}, "target_modules has no meaning here: use `targets`"),
        ({"loftq_config": {}}, "use `loftq_iterations`"),
        ({"init_lora_weights": "eva"}, "starts from a pass over data"),
        ({"keep": True, "use_dora": True}, "use_dora can only be merged"),
        ({"keep": True, "lora_bias": True}, "lora_bias can only be merged"),
        *kasa,
    ):
        with pytest.raises(RecipeError, match=match):
            create("lora", settings)
    packed = compress(make("bert"), QuantizeWeightsConfig())
    with pytest.raises(TargetError, match="needs float weights"):
        prepared(packed, init_lora_weights="pissa")
    for name in ("use_dora", "lora_bias"):
        with pytest.raises(TargetError, match=f"{name} needs float weights, .* leave it out"):
            prepared(packed, **{name: True})
    with pytest.raises(TargetError, match="would not be"):
        prepared(tied(), keep=True)
    with pytest.raises(TargetError, match="peft can't put an adapter"):
        prepared(make("bert"), init_lora_weights="pisa")
    adapted = make("bert")
    prepared(adapted)
    with pytest.raises(TargetError, match="has adapters already"):
        prepared(adapted)
    with pytest.raises(LifecycleError, match="acts while training"):
        compress(make("bert"), LoRAConfig())
