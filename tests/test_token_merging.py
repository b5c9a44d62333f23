"""Token merging: which tokens meet, what they become, and that every engine then computes with fewer."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny import Examples, auto_class, calibration, logits, make
from transformers import BeitConfig, BeitForImageClassification, TrainingArguments

from hfcompress import (
    DistillConfig,
    FfnConfig,
    HeadsConfig,
    HFCompressTrainer,
    LayersConfig,
    QuantizeWeightsConfig,
    TokenMergingConfig,
    compress,
)
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import CheckpointError, FamilyError, LifecycleError, TargetError
from hfcompress.core.families import blocks_of, family_of
from hfcompress.export.onnx import export_onnx
from hfcompress.export.runtime import open_onnx
from hfcompress.measure.flops import count_flops
from hfcompress.ops.merging import bipartite_places, merge_count, merge_tokens, spread_tokens

PIXELS = {"pixel_values": torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))}


def beit(**more: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = BeitConfig(**sizes, image_size=16, patch_size=4, num_labels=3, initializer_range=0.2, **more)
    return BeitForImageClassification(config).eval()


def model_of(name: str) -> torch.nn.Module:
    return beit() if name == "beit" else make(name)


@torch.no_grad()
def answers(model: torch.nn.Module) -> torch.Tensor:
    return model(**PIXELS).logits


# ------------------------------------------------------------------ the operations


def reference(keys: torch.Tensor, leading: int, remove: int) -> list[set[int]]:
    """Merge one image's tokens pair by pair, as section 3 tells it, and return which are one afterwards."""
    ours, theirs = range(leading, len(keys), 2), range(leading + 1, len(keys), 2)
    cosine = torch.nn.functional.cosine_similarity(keys[:, None], keys[None], dim=-1)
    best = {a: max(theirs, key=lambda b: cosine[a, b]) for a in ours}
    groups = {i: {i} for i in range(len(keys))}
    for a in sorted(ours, key=lambda a: -cosine[a, best[a]])[:remove]:
        groups[best[a]] |= groups.pop(a)
    return sorted(groups.values(), key=min)


@pytest.mark.parametrize(("tokens", "leading", "remove"), [(10, 1, 4), (11, 1, 3), (9, 2, 1), (6, 0, 3)])
def test_the_most_alike_pairs_of_two_sets_become_one(tokens, leading, remove):
    keys = torch.randn(4, tokens, 8, generator=torch.Generator().manual_seed(tokens))
    places = bipartite_places(keys, leading, remove)
    for image, row in zip(keys, places.tolist(), strict=True):
        groups: dict[int, set[int]] = {}
        for token, place in enumerate(row):
            groups.setdefault(place, set()).add(token)
        assert set(groups) == set(range(tokens - remove))
        assert sorted(groups.values(), key=min) == reference(image, leading, remove)
        assert row[:leading] == list(range(leading))  # a class token is never merged, and stays first


def test_equal_pairs_merge_in_order():
    places = bipartite_places(torch.ones(1, 7, 4), 1, 2)  # A: 1, 3, 5, B: 2, 4, 6; all alike
    assert places[0].tolist() == [0, 2, 2, 2, 3, 1, 4]


def test_a_merged_token_is_the_mean_of_all_it_stands_for():
    hidden, places = torch.randn(1, 5, 3), torch.tensor([[0, 1, 1, 2, 1]])
    merged, sizes = merge_tokens(hidden, torch.tensor([[1.0, 1.0, 3.0, 2.0, 1.0]]), places, 3)
    assert sizes.tolist() == [[1.0, 5.0, 2.0]]
    assert torch.allclose(merged[0, 1], (hidden[0, 1] + 3 * hidden[0, 2] + hidden[0, 4]) / 5)
    spread = spread_tokens(merged, places)
    assert torch.equal(spread[0, [1, 2, 4]], merged[0, [1, 1, 1]]) and spread.shape == hidden.shape


def test_how_many_go():
    assert [merge_count(3, n, 1) for n in (17, 7, 5, 2, 1)] == [3, 3, 2, 0, 0]
    assert [merge_count(0.25, n, 1) for n in (17, 9, 4)] == [4, 2, 0]


# ------------------------------------------------------------------ in a model


@pytest.mark.parametrize("name", ["vit", "dinov2", "beit"])
def test_equal_patches_lose_nothing_by_merging(name):
    """Attention in proportion to sizes and a mean over all patches: copies of a token count as often as before."""
    model = model_of(name)
    for key, parameter in model.named_parameters():
        if "position_embeddings" in key:
            parameter.data[:, 1:] = parameter.data[:, 1:2]  # else equal patches would differ by their place
    patches = torch.randn(2, 3, 4, 1, 1, generator=torch.Generator().manual_seed(1)).expand(-1, -1, -1, 4, 1)
    image = patches.reshape(2, 3, 16, 1).expand(-1, -1, -1, 16).contiguous()  # four different rows of equal patches
    pixels = {"pixel_values": image}
    with torch.no_grad():
        before = model(**pixels).logits
        after = compress(model, TokenMergingConfig(remove=8, blocks=[0]))(**pixels).logits
    assert torch.allclose(before, after, atol=1e-4)


def test_threads_that_share_a_model_merge_by_their_own_keys():
    """As a server's do: here one waits at the door of attention while another goes all the way."""
    model = compress(make("vit"), TokenMergingConfig(remove=4))
    images = torch.randn(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    alone = [model(pixel_values=image).logits for image in images]
    arrived, left, found = threading.Event(), threading.Event(), []

    def wait(*_: Any) -> None:
        if threading.current_thread() is waiting:
            arrived.set()
            left.wait(60)

    block = model.get_submodule(blocks_of(model, family_of(model))[0].path)
    block.get_submodule(block.merging.parts.attention).register_forward_pre_hook(wait)
    waiting = threading.Thread(target=lambda: found.append(model(pixel_values=images[0]).logits))
    waiting.start()
    assert arrived.wait(60) and torch.equal(model(pixel_values=images[1]).logits, alone[1])
    left.set()
    waiting.join()
    assert torch.equal(found[0], alone[0])


def test_a_model_that_merges_can_be_pickled_as_a_whole():
    model = compress(make("vit"), TokenMergingConfig(remove=4))
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(answers(again), answers(model)) and type(again.vit.layers[0]) is type(model.vit.layers[0])


@pytest.mark.parametrize("name", ["deit", "beit"])
def test_what_is_saved_merges_again(name, tmp_path):
    """With heads, units and weights compressed too, before and after, and with other amounts per block."""
    model = model_of(name)
    compress(model, HeadsConfig(remove=0.25), calibration=calibration("vit"))
    compress(model, TokenMergingConfig(remove=0.2, schedule="decreasing", blocks=[0, -1]))
    compress(model, [FfnConfig(remove=0.5, round_to=4), QuantizeWeightsConfig()], calibration=calibration("vit"))
    folder = save_checkpoint(model, tmp_path / "m")
    loaded = load_model(folder, "AutoModelForImageClassification")
    assert torch.allclose(answers(loaded), answers(model), atol=1e-6)
    modules = json.loads((folder / "config.json").read_text())["quantization_config"]["modules"]
    told = [spec for spec in modules.values() if spec["kind"] == "merging"]
    assert told == [
        {"kind": "merging", "remove": r, "restore": r == 0.0 and i == 2} for i, r in enumerate((0.4, 0.0, 0.0))
    ]
    assert loaded.base_model(**PIXELS).last_hidden_state.shape[1] == 16 + (2 if name == "deit" else 1)


@pytest.mark.slow
def test_the_exported_graph_has_fewer_tokens(tmp_path):
    model = make("dinov2")
    before = count_flops(model, PIXELS)
    compress(model, TokenMergingConfig(remove=4))
    assert count_flops(model, PIXELS) < 0.8 * before
    file = export_onnx(model, tmp_path, engines=["onnxruntime"])["onnxruntime"]
    got = open_onnx(file, 1)({k: v.numpy() for k, v in PIXELS.items()})
    assert np.allclose(got, answers(model).numpy(), atol=1e-4)
    graph = onnx.shape_inference.infer_shapes(onnx.load(file)).graph
    sizes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info]
    assert {s[1] for s in sizes if len(s) == 3 and s[2] == 64} == {13, 9, 5}  # 64: the feed-forward layers' width


def test_a_stage_trains_with_it_and_a_teacher(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to=[], save_strategy="no", seed=1)
    recipe = [TokenMergingConfig(remove=3), DistillConfig(logits=0.5, cosine=0.5)]
    trainer = HFCompressTrainer(make("vit"), args=args, train_dataset=Examples("vit"), recipe=recipe)
    seen = []
    trainer.model.vit.layers[2].mlp.fc2.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    trainer.train()  # the last hidden state, which the cosine compares, has as many tokens as the teacher's
    assert seen == [17, 8] or set(seen[1:]) == {8}
    assert trainer.compression_report["token_merging"]["block2_tokens"] == 8


@pytest.mark.parametrize("part", ["hidden", "maps", "attention", "relations"])
def test_a_teacher_with_more_tokens_inside_is_refused(part, tmp_path):
    model = make("vit")
    teacher = make("vit", 1)
    compress(model, TokenMergingConfig(remove=3))
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to=[], save_strategy="no")
    recipe = DistillConfig(logits=0, **{part: 1.0})
    trainer = HFCompressTrainer(model, args=args, train_dataset=Examples("vit"), recipe=recipe, teacher=teacher)
    with pytest.raises(LifecycleError, match=rf"distill.{part}: .*tokens"):
        trainer.train()


def test_the_last_block_left_gives_the_tokens_back(tmp_path):
    after = compress(make("dinov2"), TokenMergingConfig(remove=3))
    compress(after, LayersConfig(keep=2, choose="top"))
    before = compress(make("dinov2"), LayersConfig(keep=2, choose="top"))
    compress(before, TokenMergingConfig(remove=3))
    assert torch.equal(answers(after), answers(before))
    loaded = load_model(save_checkpoint(after, tmp_path / "m"), "AutoModelForImageClassification")
    assert loaded.base_model(**PIXELS).last_hidden_state.shape[1] == 17
    assert torch.allclose(answers(loaded), answers(before), atol=1e-6)


def test_checkpointed_activations_change_nothing():
    model = compress(make("vit"), TokenMergingConfig(remove=3)).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**PIXELS).logits.square().sum().backward()
        gradients.append(model.vit.embeddings.cls_token.grad.clone())
    assert torch.allclose(*gradients, atol=1e-6)


def test_what_cannot_be_is_refused():
    with pytest.raises(FamilyError, match="adds a bias for every pair of places"):
        compress(beit(use_relative_position_bias=True), TokenMergingConfig())
    with pytest.raises(FamilyError, match="adds a bias for every pair"):
        compress(beit(use_shared_relative_position_bias=True), TokenMergingConfig())
    with pytest.raises(FamilyError, match="adds a bias for every pair"):
        compress(make("swin"), TokenMergingConfig())
    with pytest.raises(TargetError, match="less than one"):
        compress(make("vit"), TokenMergingConfig(remove=0.05))
    with pytest.raises(TargetError, match="there is no block 3"):
        compress(make("vit"), TokenMergingConfig(remove=1, blocks=[3]))
    with pytest.raises(ValueError, match="a whole number of tokens"):
        TokenMergingConfig(remove=1.5)
    merged = compress(make("vit"), TokenMergingConfig(remove=1))
    with pytest.raises(TargetError, match="merge tokens already"):
        compress(merged, TokenMergingConfig(remove=1))
    with pytest.raises(TargetError, match="merges tokens, so that what it changes"):
        compress(merged, LayersConfig(keep=2, choose="importance"), calibration=calibration("vit"))
    merged = compress(make("vit"), TokenMergingConfig(remove=1))
    with pytest.raises(TargetError, match="takes no attention_mask"):
        merged(**PIXELS, attention_mask=(torch.arange(17) < 16).long().expand(3, -1))


@pytest.mark.parametrize(
    ("path", "spec"),
    [
        ("layers.0.merging", {"remove": -1, "restore": False}),
        ("layers.0.merging", {"remove": 2.0, "restore": False}),
        ("layers.0.merging", {"remove": 1, "restore": False, "more": 1}),
        ("layers.0.other", {"remove": 1, "restore": False}),
        ("layers.9.merging", {"remove": 1, "restore": False}),
    ],
)
def test_a_false_spec_is_refused(path, spec, tmp_path):
    folder = save_checkpoint(compress(make("vit"), TokenMergingConfig(remove=1)), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["modules"] = {path: {"kind": "merging", **spec}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="tokens are merged"):
        load_model(folder, auto_class("vit"))


def test_it_is_the_models_own_at_strength_zero():
    model = make("deit")
    before = logits(model, "deit")
    compress(model, TokenMergingConfig(remove=8))
    for module in model.deit.layers:
        module.merging.on = False
    assert torch.equal(logits(model, "deit"), before)
