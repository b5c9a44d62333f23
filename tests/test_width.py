"""Width pruning on every family: channels leave every layer of the residual stream, or the reason is said."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from tiny import TRANSFORMERS, auto_class, batch, calibration, logits, make
from torch import nn
from transformers import AutoModel
from transformers.models.bert.modeling_bert import BertForMaskedLM

from hfcompress import compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import CheckpointError, FamilyError, LifecycleError, RecipeError, TargetError
from hfcompress.core.families import blocks_of, family_of
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.registry import create
from hfcompress.methods.ffn import FfnConfig
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig
from hfcompress.methods.width import WidthConfig
from hfcompress.modules.width import activations, keep_channels_, sensitivities, stream_axes, stream_norms

ALL = tuple(n for n in TRANSFORMERS if n != "swin")
STOCK = ["vit", "deit", "beit", "llama", "qwen2", "qwen3", "llama-lm"]
KEPT = 24


def cut(name: str, **settings) -> nn.Module:
    return compress(make(name), WidthConfig(**settings), calibration=calibration(name))


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", ALL)
def test_a_narrower_model_loads_equal(name, tmp_path):
    model = cut(name)
    left = {s for path, p in model.named_parameters() for s in p.shape if s == 32}
    assert all(dim in (32, KEPT, 2 * KEPT) for dim in left) and logits(model, name).isfinite().all()
    for block in blocks_of(model, family_of(model)):
        assert all(model.get_submodule(path).weight.shape == (KEPT,) for path in block.norms)
    save_checkpoint(model, tmp_path)
    loaded = load_model(tmp_path, auto_class(name))
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert torch.allclose(logits(loaded, name), logits(model, name), atol=1e-6)
    assert ("quantization_config" not in config_of(tmp_path)) == (name in STOCK)
    if name == "gpt2-lm":
        assert model.lm_head.weight is model.transformer.wte.weight
        assert loaded.lm_head.weight is loaded.transformer.wte.weight


@pytest.mark.parametrize("name", ["bert", "gpt2", "dinov2", "deberta-v2", "t5", "albert"])
def test_nothing_but_the_channels_goes(name):
    """The channels that stay hold what they held, in every layer; inner sizes, rows of tables and labels stay."""
    model, before = make(name), make(name)
    keep = torch.arange(32) % 4 != 1
    axes = stream_axes(model, family_of(model))
    keep_channels_(model, axes, keep)
    cut_dims = {(f"{a.path}.{a.name}".lstrip("."), a.dim): a.times for a in axes}
    for key, old in before.named_parameters():
        new = model.get_parameter(key)
        for dim in range(old.ndim):
            times = cut_dims.get((key, dim), 0)
            old = old.index_select(dim, keep.repeat(times).nonzero().flatten()) if times else old
        assert torch.equal(new, old), key
    for block in blocks_of(before, family_of(before)):
        inner = model.get_submodule(block.output).weight
        assert 32 in inner.shape and KEPT in inner.shape, "heads keep their size"


def test_a_stream_with_dead_channels_answers_the_same():
    """Without norms that count channels, taking out channels that carry nothing changes nothing."""
    name = "llama"
    model = make(name)
    keep = torch.arange(32) % 4 != 1
    axes = stream_axes(model, family_of(model))
    with torch.no_grad():
        for axis in axes:
            weight = model.get_submodule(axis.path)._parameters[axis.name]
            weight.movedim(axis.dim, 0)[~keep] = 0
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):  # the mean square is over fewer channels afterwards
                module.variance_epsilon = 0.0
    before = logits(model, name)
    keep_channels_(model, axes, keep)
    for path in stream_norms(model, family_of(model)):
        model.get_submodule(path).weight.data *= (32 / KEPT) ** 0.5
    assert torch.allclose(logits(model, name), before, atol=1e-5)


@pytest.mark.parametrize("importance", ["activation", "taylor"])
@pytest.mark.parametrize("name", ["bert", "vit"])
def test_what_carries_nothing_goes(name, importance):
    model = make(name)
    dead = [1, 2, 7, 12, 18, 23, 30, 31]
    with torch.no_grad():
        for axis in stream_axes(model, family_of(model)):
            module, name_of = model.get_submodule(axis.path), axis.name
            if isinstance(module, nn.Linear) and name_of == "weight" and axis.dim == 1:
                continue  # what reads the stream
            module._parameters[name_of].movedim(axis.dim, 0)[dead] = 0
    family = family_of(model)
    if importance == "taylor":
        model.requires_grad_(False)
        scores = sensitivities(model, stream_norms(model, family), calibration(name), 0)
    else:
        scores = activations(model, [b.path for b in blocks_of(model, family)], calibration(name))
    assert sorted(scores.argsort()[:8].tolist()) == dead
    assert not any(m._forward_hooks for m in model.modules())


def test_padding_does_not_count():
    model, ids = make("bert"), batch("bert")["input_ids"]
    path = [blocks_of(model, family_of(model))[0].path]
    padded = {"input_ids": torch.cat([ids, ids[:, :3]], 1), "attention_mask": torch.ones(4, 12, dtype=torch.long)}
    padded["attention_mask"][:, 9:] = 0
    plain = activations(model, path, [{"input_ids": ids}])
    assert torch.allclose(activations(model, path, [padded]), plain, rtol=1e-5)


def test_how_many_stay_and_a_plan_sees_it():
    for keep, step, left in ((0.75, 8, 24), (0.6, 8, 16), (0.6, 1, 19), (20, 8, 20), (0.01, 8, 8)):
        cycle, model = Lifecycle([create("width", {"keep": keep, "round_to": step})], training=False), make("bert")
        cycle.prepare(model)
        assert cycle.finalize(model)["width"] == {"width_before": 32, "width_after": left}
    for keep, step in ((0.99, 8), (32, 1)):
        with pytest.raises(TargetError, match="leaves all 32 channels"):
            compress(make("bert"), WidthConfig(keep=keep, round_to=step), calibration=calibration("bert"))
    meta = copy.deepcopy(make("bert")).to("meta")
    cycle = Lifecycle([create("width", {})], training=False)
    cycle.prepare(meta)
    assert cycle.finalize(meta)["width"]["width_after"] == KEPT


def test_refusals():
    with pytest.raises(FamilyError, match=r"differs by stage \(16, 32\)"):
        compress(make("swin"), WidthConfig(), calibration=calibration("swin"))
    packed = compress(make("bert"), QuantizeWeightsConfig())
    with pytest.raises(TargetError, match="before layers are packed"):
        compress(packed, WidthConfig(), calibration=calibration("bert"))
    model = make("bert")
    model.config.num_labels = 32
    with pytest.raises(FamilyError, match="as many labels as channels"):
        stream_axes(model, family_of(model))
    model = make("gpt2")
    model = type(model)(type(model.config)(**{**model.config.to_dict(), "add_cross_attention": True}))
    with pytest.raises(FamilyError, match=r"crossattention.* is not described"):
        stream_axes(model, family_of(model))
    with pytest.raises(LifecycleError, match="a stage of its own"):
        Lifecycle([create("width", {}), create("ffn", {"remove": 0.5})], training=False)


def test_deberta_with_a_convolution(tmp_path):
    model = make("deberta-v2")
    values = model.config.to_dict() | {"conv_kernel_size": 3}
    torch.manual_seed(0)
    model = type(model)(type(model.config)(**values)).eval()
    compress(model, WidthConfig(), calibration=calibration("deberta-v2"))
    save_checkpoint(model, tmp_path)
    loaded = load_model(tmp_path, auto_class("deberta-v2"))
    assert torch.allclose(logits(loaded, "deberta-v2"), logits(model, "deberta-v2"), atol=1e-6)


def test_a_head_over_the_vocabulary_stays_tied(tmp_path):
    model = BertForMaskedLM(make("bert").config).eval()
    ids = batch("bert")["input_ids"]
    compress(model, WidthConfig(), calibration=[{"input_ids": ids, "labels": ids}])
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    save_checkpoint(model, tmp_path)
    loaded = load_model(tmp_path, "AutoModelForMaskedLM")
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-6)
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight


def test_it_goes_with_other_methods_one_after_the_other(tmp_path):
    for name in ("bert", "llama"):
        model = compress(make(name), FfnConfig(remove=0.5), calibration=calibration(name))
        compress(model, WidthConfig(), calibration=calibration(name))
        compress(model, QuantizeWeightsConfig())
        save_checkpoint(model, tmp_path / name)
        loaded = load_model(tmp_path / name, auto_class(name))
        assert torch.allclose(logits(loaded, name), logits(model, name), atol=1e-6)
    base = AutoModel.from_pretrained(tmp_path / "bert").eval()
    assert base(**batch("bert"))[0].shape == (4, 9, KEPT)


@pytest.mark.parametrize("name", ["roberta", "mpnet"])
def test_the_base_model_gets_a_new_pooler_that_fits(name, tmp_path):
    save_checkpoint(cut(name), tmp_path)
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert base(**batch(name)).pooler_output.shape == (4, KEPT)


def test_sizes_are_bounded(tmp_path):
    for name, path, key, wrong in (
        ("bert", "embeddings.LayerNorm", "normalized_shape", 10**9),
        ("bert", "embeddings.LayerNorm", "normalized_shape", "24"),
        ("bert", "embeddings.LayerNorm", "eps", 1.0),
        ("dinov2", "embeddings", "cls_token", [1, 1, 10**9]),
        ("dinov2", "encoder.layer.0.layer_scale1", "lambda1", [-1]),
        ("t5", "encoder.final_layer_norm", "weight", [10**9]),
    ):
        folder = tmp_path / name
        if not folder.exists():
            save_checkpoint(cut(name), folder)
        config = config_of(folder)
        modules = config["quantization_config"]["modules"]
        modules[path] = modules[path] | {key: wrong}
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"is not between 1 and|is not the config's"):
            load_model(folder, auto_class(name))
        (folder / "config.json").write_text(text)


@pytest.mark.parametrize("name", ["width", "layers"])
def test_a_value_of_neither_kind_is_one_line_about_its_key(name):
    with pytest.raises(RecipeError) as caught:
        create(name, {"keep": 1.5}, "stages.0.methods")
    assert str(caught.value) == (
        f"stages.0.methods.{name}.keep: input should be a valid integer, got a number with a fractional part; or input "
        "should be less than 1 (got 1.5)."
    )


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"logits": {"weight": -1}}, "logits.weight: "),
        ({"logits": -1}, "logits: "),
        ({"logits": {"wieght": 1}}, "logits.wieght: unknown key"),
        ({"relations": {"layers": {0: "x"}}}, "relations.layers"),
        ({"relations": {"of": ["query", "kez"]}}, "relations.of.1: "),
    ],
    ids=str,
)
def test_paths_name_keys_not_branches(settings, key):
    with pytest.raises(RecipeError) as caught:
        create("distill", settings)
    for line in str(caught.value).splitlines():
        assert line.startswith(f"methods.distill.{key}") and not {"int", "literal", "dict"} & set(
            re.split(r"\W", line.split(": ")[0])
        )
