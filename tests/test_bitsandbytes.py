"""Layers held by bitsandbytes: nested in our checkpoints, alone, after pruning, and under adapters."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_checkpoint import load_in_fresh_process, shrink
from tiny import Examples, auto_class, batch, logits, make
from torch import nn
from transformers import AutoModel, Trainer, TrainingArguments

from hfcompress import BitsandbytesConfig, DistillConfig, HFCompressTrainer, MovementConfig, QuantizeWeightsConfig
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import CheckpointError, HFCompressError, LifecycleError, RecipeError, TargetError
from hfcompress.core.registry import create
from hfcompress.export.plain import plain_copy
from hfcompress.measure.size import count_parameters
from hfcompress.modules.bnb import BnbFormat, bnb_layers, widen_bnb_
from hfcompress.modules.bnb_quantized import BnbRounded, quantize_bnb_
from hfcompress.train.compress import compress

SETTINGS = {
    "nf4": {"mode": "nf4"},
    "nf4-double": {"mode": "nf4", "double_quant": True, "block_size": 32},
    "fp4": {"mode": "fp4"},
    "int8": {"mode": "int8", "threshold": 3.0},
}


def quantized(name: str = "bert", **settings) -> nn.Module:
    """Return the tiny model, pruned by more in each layer, with layers held by bitsandbytes."""
    return compress(shrink(make(name)), BitsandbytesConfig(**settings))


def same_state(ours: nn.Module, theirs: nn.Module) -> bool:
    """Say whether two models hold the same tensors under the same names."""
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("form", SETTINGS)
@pytest.mark.parametrize("name", ["bert", "vit", "dinov2-swiglu"])
def test_a_pruned_model_loads_equal_and_saves_equal(name, form, tmp_path):
    model = quantized(name, **SETTINGS[form])
    first = save_checkpoint(model, tmp_path / "first")
    loaded = load_model(first, auto_class(name))
    assert same_state(model, loaded)
    assert torch.allclose(logits(loaded, name), logits(model, name), atol=1e-6)
    loaded.save_pretrained(tmp_path / "second")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "second" / file).read_bytes() == (first / file).read_bytes()
    inner = json.loads((first / "config.json").read_text())["quantization_config"]["inner"]
    assert inner["quant_method"] == "bitsandbytes" and inner["load_in_8bit" if form == "int8" else "load_in_4bit"]


def test_a_fresh_process_loads_the_same(tmp_path):
    model = quantized("vit")
    save_checkpoint(model, tmp_path / "model")
    status, stderr, found = load_in_fresh_process(tmp_path / "model", "vit", tmp_path)
    assert status == 0, stderr
    assert torch.allclose(found["logits"], logits(model, "vit"), atol=1e-6)
    assert all(torch.equal(tensor, found["state"][name]) for name, tensor in model.state_dict().items())


def test_int8_codes_are_not_taken_for_weights_without_the_import(tmp_path):
    save_checkpoint(compress(make("bert"), BitsandbytesConfig(mode="int8")), tmp_path / "model")
    status, stderr, _ = load_in_fresh_process(tmp_path / "model", "bert", tmp_path, with_import=False)
    assert status != 0 and "pip install hfcompress; import hfcompress" in stderr


def test_beside_packed_embeddings_in_other_dtypes_and_as_a_base_model(tmp_path):
    model = compress(make("bert"), [BitsandbytesConfig(), QuantizeWeightsConfig(targets=["Embedding"])])
    save_checkpoint(model, tmp_path)
    assert same_state(load_model(tmp_path, auto_class("bert")), model)
    base = AutoModel.from_pretrained(tmp_path)
    assert same_state(base, model.bert) and len(list(bnb_layers(base))) == 18
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters() if p.is_floating_point()} == {torch.bfloat16}
    with torch.no_grad():
        error = half(**batch("bert"))[0] - base(**batch("bert"))[0]
    assert error.abs().max() < 0.2


# in 33 and 24 columns blocks run over the ends of rows, and 7 x 33 weights are an odd number
SHAPES = [(64, 32, 64), (128, 40, 24), (64, 7, 33), (4096, 64, 128), (32, 32, 32)]


@pytest.mark.parametrize("mode", ["nf4", "fp4"])
@pytest.mark.parametrize(("block_size", "rows", "columns"), SHAPES)
def test_the_layer_computes_with_the_rounded_weight_whatever_its_shape(mode, block_size, rows, columns):
    model = nn.Sequential(nn.Linear(columns, rows)).eval()
    form = BnbFormat(mode, double_quant=block_size == 64, block_size=block_size)
    wrapper = BnbRounded(form)
    wrapper.on.fill_(True)
    x, rounded = torch.randn(3, columns), wrapper(model[0].weight)
    expected = nn.functional.linear(x, rounded, model[0].bias)
    quantize_bnb_(model, "0", form)
    with torch.no_grad():
        assert torch.allclose(model(x), expected, atol=1e-5)
    counted = count_parameters(model)
    assert counted[0] == rows * columns + rows
    assert torch.equal(widen_bnb_(model)[0].weight, rounded)
    assert count_parameters(model) == counted


def test_zeros_are_counted_through_the_codes():
    model = nn.Sequential(nn.Linear(33, 7, bias=False))
    model[0].weight.data[:, ::3] = 0
    quantize_bnb_(model, "0", BnbFormat("nf4"))
    found = count_parameters(model)
    assert found == count_parameters(widen_bnb_(model))


def test_int8_differs_from_its_rounded_weights_by_the_rounding_of_activations():
    method = create("bitsandbytes", {"mode": "int8"})
    model = make("bert")
    compress(model, method.config)
    weights_only = plain_copy(model)
    exact, rounded, both = (logits(m, "bert") for m in (make("bert"), weights_only, model))
    error = (both - rounded).abs().max() / exact.std()
    assert 0 < error < 0.1, "documented: activations are rounded by the layer, not by its stand-in while training"


def test_dequantize_gives_plain_layers_that_train(tmp_path):
    save_checkpoint(quantized(mode="nf4"), tmp_path)
    model = load_model(tmp_path, auto_class("bert"))
    before = logits(model, "bert")
    model.dequantize()
    assert not list(bnb_layers(model))
    assert torch.allclose(logits(model, "bert"), before, atol=1e-5)
    assert all(p.requires_grad and p.is_floating_point() for p in model.parameters())
    assert not model.is_quantized and not hasattr(model, "is_loaded_in_4bit")
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    save_checkpoint(model, tmp_path / "plain")
    assert "inner" not in json.loads((tmp_path / "plain" / "config.json").read_text())["quantization_config"]
    Trainer(model=model, args=arguments(tmp_path, "run"), train_dataset=Examples("bert"))


def test_the_head_and_the_pooler_stay_in_float_unless_asked_for():
    held = {path for path, _ in bnb_layers(quantized())}
    assert not any("pooler" in path or not path.startswith("bert.encoder") for path in held)
    held = {path for path, _ in bnb_layers(quantized(targets=["Linear"], ignore=["re:bert.encoder"]))}
    assert held == {"bert.pooler.dense", "classifier"}


def test_what_a_model_class_keeps_in_float32_is_left_alone():
    """T5 casts what goes into `wo` to the dtype of its weight, which codes are not."""
    model = compress(make("t5"), BitsandbytesConfig())
    held = [path for path, _ in bnb_layers(model)]
    assert any(".wi" in path for path in held) and not any(path.endswith(".wo") for path in held)
    with pytest.raises(TargetError, match="float32 only"):
        compress(make("t5"), BitsandbytesConfig(targets=["re:.*wo"]))


# ---------------------------------------------------------------------- adapters on top


def arguments(folder: Path, name: str, **more) -> TrainingArguments:
    return TrainingArguments(
        str(folder / name),
        **{"max_steps": 8, "learning_rate": 1e-2, "save_strategy": "no", **more},
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )


@pytest.mark.parametrize("mode", ["nf4", "int8"])
def test_adapters_recover_a_quantized_model(mode, tmp_path):
    """The example of the README: load, adapt, train with the stock Trainer, save the adapter, load both again."""
    save_checkpoint(quantized(mode=mode), tmp_path / "base")
    base = load_model(tmp_path / "base", auto_class("bert"))
    with pytest.raises(ValueError, match="attach trainable adapters"):
        Trainer(model=base, args=arguments(tmp_path, "refused"), train_dataset=Examples("bert"))
    held = {path: module.weight.data.clone() for path, module in bnb_layers(base)}
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))
    args = arguments(tmp_path, "run")
    trainer = Trainer(model=model, args=args, train_dataset=Examples("bert"), eval_dataset=Examples("bert"))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * before
    after = {path.removesuffix(".base_layer"): module.weight.data for path, module in bnb_layers(base)}
    assert all(torch.equal(after[path], weight) for path, weight in held.items())
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load_model(tmp_path / "base", auto_class("bert")), tmp_path / "adapter")
    assert torch.allclose(logits(again, "bert"), logits(model, "bert"), atol=1e-6)


def test_adapters_distil_under_our_trainer_and_resume(tmp_path):
    save_checkpoint(quantized(), tmp_path / "base")

    def train(**more):
        torch.manual_seed(0)
        base = load_model(tmp_path / "base", auto_class("bert"))
        model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear"))
        args = arguments(tmp_path, "run", max_steps=4, save_strategy="steps", save_steps=2)
        trainer = HFCompressTrainer(
            model=model, args=args, train_dataset=Examples("bert"), recipe=[DistillConfig()], teacher=make("bert")
        )
        trainer.train(**more)
        return logits(trainer.model, "bert")

    whole = train()
    assert not torch.allclose(whole, logits(load_model(tmp_path / "base", auto_class("bert")), "bert"), atol=1e-3)
    assert torch.allclose(train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2")), whole, atol=1e-6)


# ---------------------------------------------------------------------- what is refused


def test_shared_weights_and_layers_that_are_quantized_already_are_refused():
    model = make("bert")
    layers = model.bert.encoder.layer
    layers[1].output.dense.weight = layers[0].output.dense.weight
    with pytest.raises(TargetError, match="shared"):
        compress(model, BitsandbytesConfig())
    model = quantized()
    with pytest.raises(TargetError, match=r"quantized already|can't be packed"):
        compress(copy.deepcopy(model), QuantizeWeightsConfig(targets=["re:.*query"]))
    query = "bert.encoder.layer.0.attention.self.query"
    rest = compress(copy.deepcopy(model), QuantizeWeightsConfig())  # by default they are left as they are
    assert type(rest.get_submodule(query)) is type(model.get_submodule(query))
    with pytest.raises(LifecycleError, match="add adapters"):
        HFCompressTrainer(model=model, recipe=[MovementConfig(heads=0.5)])


def test_one_checkpoint_holds_one_format():
    model = quantized(targets=["re:.*query"])
    compress(model, BitsandbytesConfig(targets=["re:.*key"], block_size=128))
    with pytest.raises(TargetError, match="one format"):
        compress(model, BitsandbytesConfig(mode="int8", targets=["re:.*value"]))


def test_two_methods_that_claim_one_weight_are_refused():
    with pytest.raises(TargetError, match="two methods"):
        compress(make("bert"), [BitsandbytesConfig(), QuantizeWeightsConfig()])


@pytest.mark.parametrize("settings", [{"mode": "int8", "double_quant": True}, {"mode": "nf4", "threshold": 3.0}])
def test_a_setting_of_another_mode_is_refused(settings):
    with pytest.raises(RecipeError, match="has no meaning in mode"):
        create("bitsandbytes", settings)


def test_without_the_package_the_error_names_it(tmp_path, monkeypatch):
    save_checkpoint(quantized(), tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(LifecycleError, match="pip install bitsandbytes"):
        compress(make("bert"), BitsandbytesConfig())
    with pytest.raises(CheckpointError, match="pip install bitsandbytes"):
        load_model(tmp_path, auto_class("bert"))


QUERY = "encoder.layer.0.attention.self.query"
HOSTILE_CONFIGS = [
    (lambda c: c.pop("inner"), "names none"),
    (lambda c: c["inner"].update(llm_int8_skip_modules=["(a+)+$"]), "unknown key"),
    (lambda c: c["inner"].update(quant_method="awq"), "quant_method"),
    (lambda c: c["inner"].update(load_in_8bit=True), "exactly one"),
    (lambda c: c["modules"][QUERY].update(inner=1), "do not describe"),
    (lambda c: c["modules"][QUERY].update(in_features=10**9), "not between 1 and"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE_CONFIGS)
def test_a_hostile_config_is_refused(change, message, tmp_path):
    save_checkpoint(quantized(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config["quantization_config"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path, auto_class("bert"))


def _claim(state, **values):
    key = next(k for k in state if k.endswith(f"{QUERY}.weight.quant_state.bitsandbytes__nf4"))
    text = json.dumps(json.loads(bytes(state[key].tolist())) | values)
    state[key] = torch.tensor(list(text.encode()), dtype=torch.uint8)


def _cut(state, suffix):
    key = f"bert.{QUERY}.{suffix}"
    state[key] = state[key][:1].clone()


HOSTILE_TENSORS = [
    ("nf4", lambda s: _claim(s, shape=[10**6, 10**6])),
    ("nf4", lambda s: _claim(s, blocksize=2)),
    ("nf4", lambda s: _claim(s, dtype="load")),
    ("nf4", lambda s: _claim(s, quant_type="fp4")),
    ("nf4", lambda s: _cut(s, "weight.absmax")),
    ("nf4", lambda s: _cut(s, "weight")),
    ("nf4", lambda s: s.pop(f"bert.{QUERY}.weight.absmax")),
    ("int8", lambda s: _cut(s, "weight")),
    ("int8", lambda s: _cut(s, "SCB")),
    ("int8", lambda s: s.pop(f"bert.{QUERY}.SCB")),
]


@pytest.mark.parametrize(("mode", "change"), HOSTILE_TENSORS)
def test_tensors_that_do_not_belong_together_are_refused(mode, change, tmp_path):
    """The library's kernels would read past the end of what is there."""
    save_checkpoint(quantized(mode=mode), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HFCompressError):
        load_model(tmp_path, auto_class("bert"))
