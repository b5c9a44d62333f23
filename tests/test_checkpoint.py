"""Compressed checkpoints: loaded in a fresh process, without the import, from hostile or damaged files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import HEADS, LAYERS, MODELS, UNITS, Examples, auto_class, batch, calibration, logits, make
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForTokenClassification,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5Model,
    Trainer,
    TrainingArguments,
)

from hfcompress import compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.config import StrictModel
from hfcompress.core.errors import CheckpointError, HFCompressError
from hfcompress.core.families import blocks_of, family_of
from hfcompress.methods.cluster_weights import ClusterWeightsConfig
from hfcompress.methods.entropy_coding import EntropyCodingConfig
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig
from hfcompress.methods.share_layers import ShareLayersConfig
from hfcompress.methods.smooth_quant import SmoothQuantConfig
from hfcompress.methods.svd import SVDConfig
from hfcompress.methods.width import WidthConfig
from hfcompress.modules.packed import PackedEmbedding, PackedLinear, dequantize_
from hfcompress.modules.shrink import keep_heads_, keep_units_

LOAD = """
import sys, torch
{imports}
from transformers import {auto}
inputs = torch.load({inputs!r}, weights_only=True)
model = {auto}.from_pretrained({folder!r})
with torch.no_grad():
    torch.save({{"logits": model.eval()(**inputs).logits, "state": model.state_dict()}}, {output!r})
"""


def shrink(model: nn.Module, *, uniform: bool = False) -> nn.Module:
    """Cut heads and units, by the same in every layer or by more in each."""
    for i, block in enumerate(blocks_of(model, family_of(model))):
        cut = 1 if uniform else i + 1
        keep_heads_(model, block, torch.arange(HEADS) >= cut)
        keep_units_(model, block, torch.arange(model.get_submodule(block.down).in_features) >= 8 * cut)
    return model


def load_in_fresh_process(folder: Path, name: str, tmp_path: Path, *, with_import: bool = True):
    """Load and run the model in a new interpreter; returns (exit status, stderr, what it computed)."""
    torch.save(batch(name), tmp_path / "inputs.pt")
    code = LOAD.format(
        imports="import hfcompress" if with_import else "",
        auto=auto_class(name),
        inputs=str(tmp_path / "inputs.pt"),
        folder=str(folder),
        output=str(tmp_path / "output.pt"),
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    found = torch.load(tmp_path / "output.pt", weights_only=True) if done.returncode == 0 else None
    return done.returncode, done.stderr, found


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_a_fresh_process_loads_the_same(name, tmp_path):
    model = compress(shrink(make(name)), QuantizeWeightsConfig())
    save_checkpoint(model, tmp_path / "model")
    status, stderr, found = load_in_fresh_process(tmp_path / "model", name, tmp_path)
    assert status == 0, stderr
    assert torch.allclose(found["logits"], logits(model, name), atol=1e-6)
    state = model.state_dict()
    assert state.keys() == found["state"].keys()
    assert all(torch.equal(state[k], found["state"][k]) for k in state)


@pytest.mark.parametrize(("what", "name"), [("pruned", "bert"), ("packed", "bert"), ("packed", "vit")])
def test_loading_without_the_import_is_loud(what, name, tmp_path):
    model = make(name)
    model = shrink(model) if what == "pruned" else compress(model, QuantizeWeightsConfig())
    save_checkpoint(model, tmp_path / "model")
    status, stderr, _ = load_in_fresh_process(tmp_path / "model", name, tmp_path, with_import=False)
    assert status != 0 and "pip install hfcompress; import hfcompress" in stderr


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_what_fits_the_stock_config_loads_without_the_import(name, tmp_path):
    model = shrink(make(name), uniform=True)
    save_checkpoint(model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["num_attention_heads"], config["intermediate_size"]) == (HEADS - 1, UNITS - 8)
    status, stderr, found = load_in_fresh_process(tmp_path / "model", name, tmp_path, with_import=False)
    assert status == 0, stderr
    assert torch.allclose(found["logits"], logits(model, name), atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_base_model_loads_from_a_checkpoint_with_a_head(name, tmp_path):
    model = compress(shrink(make(name)), QuantizeWeightsConfig())
    save_checkpoint(model, tmp_path)
    base = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        ours = getattr(model, model.base_model_prefix)(**batch(name))[0]
        assert torch.allclose(base(**batch(name))[0], ours, atol=1e-6)


@pytest.mark.parametrize("kind", [T5Model, T5EncoderModel])
def test_an_encoder_decoder_loads_without_its_head_or_its_decoder(kind, tmp_path):
    config = T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    whole = compress(T5ForConditionalGeneration(config).eval(), QuantizeWeightsConfig())
    save_checkpoint(whole, tmp_path)
    part = kind.from_pretrained(tmp_path).eval()
    ids = batch("t5")["input_ids"]
    with torch.no_grad():
        found = part.encoder(input_ids=ids).last_hidden_state
        assert torch.equal(found, whole.encoder(input_ids=ids).last_hidden_state)


def test_what_another_class_lacks_is_left_out_but_nothing_of_its_own(tmp_path):
    model = compress(make("distilbert"), QuantizeWeightsConfig())
    save_checkpoint(model, tmp_path)
    assert AutoModelForTokenClassification.from_pretrained(tmp_path).num_labels == 3
    config = json.loads((tmp_path / "config.json").read_text())
    modules = config["quantization_config"]["modules"]
    modules["transformer.layer.7.attention.q_lin"] = modules["transformer.layer.0.attention.q_lin"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"layer.7.attention.q_lin', which this model does not have"):
        AutoModelForTokenClassification.from_pretrained(tmp_path)


def with_plain_numbers_in_its_head(name: str) -> nn.Module:
    model = make(name)
    for path, parameter in model.named_parameters():
        if path.startswith("classifier"):
            parameter.data = (4 * parameter.data).round()  # so few values that even a small head gets smaller coded
    return model


HEADED: dict[str, tuple[str, list[StrictModel]]] = {
    "narrow": ("bert", [WidthConfig()]),
    "narrow, two layers": ("roberta", [WidthConfig(), QuantizeWeightsConfig()]),
    "packed": ("vit", [QuantizeWeightsConfig(targets=["classifier"])]),
    "split": ("bert", [SVDConfig(rank=1, targets=["classifier"])]),
    "split, coded": ("bert", [SVDConfig(rank=1, targets=["classifier"]), EntropyCodingConfig()]),
    "split, packed": (
        "bert",
        [SVDConfig(rank=1, targets=["classifier"]), QuantizeWeightsConfig(targets=["re:classifier.*"])],
    ),
    "coded": ("vit", [EntropyCodingConfig()]),
}


@pytest.mark.fast_cases(8)
@pytest.mark.parametrize("count", [2, 5, 32])
@pytest.mark.parametrize("kind", HEADED)
def test_another_number_of_labels_makes_another_head(kind, count, tmp_path, monkeypatch):
    monkeypatch.setattr("hfcompress.modules.at_rest.SAVING", 8)
    name, methods = HEADED[kind]
    model = with_plain_numbers_in_its_head(name)
    for method in methods:
        compress(model, method, calibration=calibration(name))
    save_checkpoint(model, tmp_path)
    assert torch.allclose(logits(load_model(tmp_path, auto_class(name)), name), logits(model, name), atol=1e-6)
    with pytest.raises(CheckpointError, match="ignore_mismatched_sizes"):
        load_model(tmp_path, auto_class(name), num_labels=count)
    other: dict[str, Any] = {"num_labels": count, "ignore_mismatched_sizes": True}
    with pytest.raises(CheckpointError, match=r"no weights for classifier.*random"):
        load_model(tmp_path, auto_class(name), **other)
    new = load_model(tmp_path, auto_class(name), new_head=True, **other)
    assert logits(new, name).shape == (4, count) and logits(new, name).isfinite().all()
    ours, theirs = ({n: t for n, t in m.state_dict().items() if not n.startswith("classifier")} for m in (model, new))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_a_head_that_is_coded_asks_for_its_own_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("hfcompress.modules.at_rest.SAVING", 8)
    monkeypatch.setattr("hfcompress.modules.at_rest.label_layers", lambda model: set())  # as earlier releases did
    model = compress(with_plain_numbers_in_its_head("vit"), EntropyCodingConfig())
    save_checkpoint(model, tmp_path)
    assert torch.equal(logits(load_model(tmp_path, auto_class("vit")), "vit"), logits(model, "vit"))
    for count in (2, 5):
        with pytest.raises(CheckpointError, match="as many labels as it was saved with"):
            load_model(tmp_path, auto_class("vit"), num_labels=count, ignore_mismatched_sizes=True, new_head=True)


@pytest.mark.parametrize("methods", [[QuantizeWeightsConfig()], [EntropyCodingConfig()]])
def test_another_task_of_the_same_body_gets_a_head_of_another_form(methods, tmp_path, monkeypatch):
    monkeypatch.setattr("hfcompress.modules.at_rest.SAVING", 8)
    whole = compress(make("roberta"), methods)
    save_checkpoint(whole, tmp_path / "sequences")
    tokens = load_model(tmp_path / "sequences", AutoModelForTokenClassification, new_head=True)
    assert type(tokens.classifier) is nn.Linear
    ours, theirs = (m.roberta.state_dict() for m in (whole, tokens))
    assert all(torch.equal(t, theirs[n]) for n, t in ours.items() if not n.startswith("pooler"))
    compress(tokens, QuantizeWeightsConfig(targets=["classifier"]))
    save_checkpoint(tokens, tmp_path / "tokens")
    back = load_model(tmp_path / "tokens", auto_class("roberta"), new_head=True)
    assert type(back.classifier.dense) is nn.Linear and logits(back, "roberta").shape == (4, 3)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_fine_tuning_further_with_the_stock_trainer(name, tmp_path):
    save_checkpoint(compress(shrink(make(name)), QuantizeWeightsConfig()), tmp_path / "model")
    model = load_model(tmp_path / "model", auto_class(name))
    args = TrainingArguments(
        str(tmp_path / "run"), max_steps=30, learning_rate=1e-2, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = Trainer(model=model, args=args, train_dataset=Examples(name), eval_dataset=Examples(name))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before
    save_checkpoint(model, tmp_path / "again")
    assert torch.allclose(
        logits(load_model(tmp_path / "again", auto_class(name)), name), logits(model, name), atol=1e-6
    )


DDP = """
import os, sys
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
sys.path.insert(0, {tests!r})
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from tiny import batch
from torch.nn.parallel import DistributedDataParallel
from hfcompress.checkpoint import load_model
from hfcompress.modules.adapters import add_adapters_

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for kind in {kinds!r}:
    for adapted in ("not", "outside", "inside"):
        model = load_model({folder!r} + "/" + kind, "AutoModelForSequenceClassification").train()
        if adapted == "outside":
            model = get_peft_model(model, LoraConfig(target_modules=["classifier"]))
        elif adapted == "inside" and kind != "split":
            add_adapters_(model, ["bert.encoder.layer.0.attention.self.query"], {{}}, seed=0)
        model = DistributedDataParallel(model)
        for _ in range(3):  # each fails where the one before left a parameter without its gradient
            model(**batch("bert"), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        print("trained", kind, adapted)
sys.stdout.flush()
os._exit(0)  # gloo's threads may abort an interpreter that shuts down around them
"""


def test_a_loaded_model_is_trained_in_several_processes(tmp_path):
    methods: dict[str, list[StrictModel]] = {
        "packed": [QuantizeWeightsConfig()],
        "grids": [SmoothQuantConfig()],
        "split": [SVDConfig(rank=4)],
        "codebooks": [ClusterWeightsConfig(clusters=8, rows=None)],
    }
    for kind, each in methods.items():
        save_checkpoint(compress(make("bert"), each, calibration=calibration("bert")), tmp_path / kind)
    code = DDP.format(tests=str(Path(__file__).parent), folder=str(tmp_path), kinds=list(methods))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("trained") == 3 * len(methods)


CHANGES: dict[str, tuple[StrictModel, Callable[[Any], object]]] = {
    "more words": (WidthConfig(), lambda model: model.resize_token_embeddings(101)),
    "fewer words": (WidthConfig(), lambda model: model.resize_token_embeddings(97)),
    "fewer layers": (QuantizeWeightsConfig(), lambda model: model.bert.encoder.layer.__delitem__(2)),
    "another head": (
        QuantizeWeightsConfig(targets=["classifier", "bert.pooler.dense"]),
        lambda model: model.set_submodule("classifier", nn.Linear(32, 3)),
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_model_that_was_changed_is_saved_as_it_is(kind, tmp_path):
    method, change = CHANGES[kind]
    save_checkpoint(compress(make("bert"), method, calibration=calibration("bert")), tmp_path / "first")
    model = load_model(tmp_path / "first", auto_class("bert"))
    change(model)
    model.config.num_hidden_layers = len(model.bert.encoder.layer)
    model.save_pretrained(tmp_path / "second")
    again = load_model(tmp_path / "second", auto_class("bert"))
    assert torch.allclose(logits(again, "bert"), logits(model, "bert"), atol=1e-6)


BODIES: dict[str, tuple[str, list[StrictModel]]] = {
    "packed": ("bert", [QuantizeWeightsConfig()]),
    "coded": ("vit", [EntropyCodingConfig()]),
    "shared": ("bert", [ShareLayersConfig()]),
    "shared, coded": ("bert", [ShareLayersConfig(), EntropyCodingConfig()]),
}


@pytest.mark.parametrize("kind", BODIES)
def test_the_body_of_a_loaded_model_is_saved_alone(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("hfcompress.modules.at_rest.SAVING", 8)
    name, methods = BODIES[kind]
    made = make(name)
    for method in methods:
        compress(made, method)
    save_checkpoint(made, tmp_path / "whole")
    for model in (made, load_model(tmp_path / "whole", auto_class(name))):
        for _ in range(2):  # a save changes nothing for the next one
            model.base_model.save_pretrained(tmp_path / "body")
            state = AutoModel.from_pretrained(tmp_path / "body").state_dict()
            ours = model.base_model.state_dict()
            assert all(torch.equal(ours[n], t) for n, t in state.items() if n in ours or "pooler" not in n)
            model.save_pretrained(tmp_path / "again")
            assert torch.equal(logits(load_model(tmp_path / "again", auto_class(name)), name), logits(model, name))
        sizes = [(tmp_path / each / "model.safetensors").stat().st_size for each in ("body", "whole")]
        assert 0.8 * sizes[1] < sizes[0] < sizes[1]


@pytest.mark.parametrize("name", MODELS)
def test_dequantize_gives_plain_layers_that_compute_the_same(name, tmp_path):
    save_checkpoint(compress(make(name), QuantizeWeightsConfig()), tmp_path)
    model = load_model(tmp_path, auto_class(name))
    before = logits(model, name)
    model.dequantize()
    assert not any(isinstance(m, PackedLinear | PackedEmbedding) for m in model.modules())
    assert torch.allclose(logits(model, name), before, atol=1e-6)
    assert not hasattr(model, "hf_quantizer") and not hasattr(model.base_model, "hf_quantizer")
    save_checkpoint(model, tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_half_precision_never_touches_the_stored_weights(tmp_path):
    save_checkpoint(compress(make("bert"), QuantizeWeightsConfig()), tmp_path)
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    packed = model.encoder.layer[0].output.dense
    assert packed.weight_codes.dtype == torch.int8
    assert model(**batch("bert"))[0].dtype == torch.bfloat16
    assert torch.equal(
        packed.weight_codes,
        load_file(tmp_path / "model.safetensors")["bert.encoder.layer.0.output.dense.weight_codes"],
    )


def test_a_packed_layer_notices_a_new_weight():
    layer = PackedLinear(4, 3)
    layer.set_weight(torch.ones(3, 4))
    layer.eval()
    with torch.no_grad():
        assert torch.allclose(layer(torch.ones(4)), torch.full((3,), 4.0), atol=1e-3)
        layer.set_weight(2 * torch.ones(3, 4))
        assert torch.allclose(layer(torch.ones(4)), torch.full((3,), 8.0), atol=1e-2)


HOSTILE = [
    ({"kind": "linear", "in_features": 10**9, "out_features": 10**9, "bias": True}, "not between 1 and"),
    ({"kind": "linear", "in_features": 32, "out_features": -1, "bias": True}, "not between 1 and"),
    ({"kind": "linear", "in_features": 32, "out_features": "32", "bias": True}, "not between 1 and"),
    ({"kind": "linear", "in_features": 32, "out_features": 32, "bias": True, "code": "x"}, "do not describe"),
    ({"kind": "os.system"}, "can't stand for"),
    ({"kind": "embedding", "num_embeddings": 8, "embedding_dim": 8, "padding_idx": None}, "can't stand for"),
]


@pytest.mark.parametrize(("spec", "message"), HOSTILE)
def test_a_hostile_structure_is_refused(spec, message, tmp_path):
    save_checkpoint(shrink(make("bert")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["modules"]["encoder.layer.0.output.dense"] = spec
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path, auto_class("bert"))


def test_a_structure_of_another_model_or_a_newer_format_is_refused(tmp_path):
    save_checkpoint(shrink(make("bert")), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    modules = config["quantization_config"]["modules"]
    config["quantization_config"]["modules"] = {
        **modules,
        "encoder.layer.99.output.dense": next(iter(modules.values())),
    }
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"layer\.99.*does not have"):
        load_model(tmp_path, auto_class("bert"))
    config["quantization_config"]["version"] = 2
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="pip install -U hfcompress"):
        load_model(tmp_path, auto_class("bert"))


def test_truncated_and_incomplete_weights_are_refused(tmp_path):
    save_checkpoint(make("bert"), tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-50], whole[:4], b"\xff" * 64):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            load_model(tmp_path, auto_class("bert"))
    weights.write_bytes(whole)
    state = load_file(weights)
    del state["classifier.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no weights for classifier\.weight.*finetune"):
        load_model(tmp_path, auto_class("bert"))


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    first = make("bert")
    save_checkpoint(first, tmp_path / "model")
    second = make("bert", seed=1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(second, "save_pretrained", full)
    with pytest.raises(HFCompressError, match="No space left on device"):
        save_checkpoint(second, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert torch.equal(logits(load_model(tmp_path / "model", auto_class("bert")), "bert"), logits(first, "bert"))


def test_zero_rows_and_tiny_weights_survive_packing():
    weight = torch.zeros(4, 8)
    weight[1] = torch.linspace(-1e-6, 1e-6, 8)
    weight[2] = torch.linspace(-300, 300, 8)
    layer = nn.Linear(8, 4, bias=False)
    layer.weight.data = weight
    model = nn.Sequential(layer)
    from hfcompress.modules.packed import pack_

    pack_(model, "0")
    error = (dequantize_(model)[0].weight - weight).abs().amax(1)
    assert error[0] == 0 and error[1] <= 1e-6 and error[2] < 300 / 127


def test_layers_counts_match_the_tiny_models():
    assert len(blocks_of(make("vit"), family_of(make("vit")))) == LAYERS
