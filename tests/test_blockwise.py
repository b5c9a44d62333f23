"""Pruning and quantizing from calibration data: the mathematics, the walk through the blocks, five methods on it."""

from __future__ import annotations

import weakref
from functools import partial

import pytest
import torch
from pydantic import ValidationError
from tiny import CONVOLUTIONAL, MORE, WITH_LINEAR, auto_class, calibration, logits, make
from tiny import MODELS as TINY
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertForMultipleChoice,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hfcompress import compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import DataError, LifecycleError, TargetError
from hfcompress.core.families import blocks_of, family_of
from hfcompress.core.method import Context
from hfcompress.methods.gptq import GPTQConfig
from hfcompress.methods.magnitude import Magnitude, MagnitudeConfig
from hfcompress.methods.n_m import NOfMConfig
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig
from hfcompress.methods.sparsegpt import SparseGPTConfig
from hfcompress.methods.wanda import WandaConfig
from hfcompress.modules.blockwise import observe_all, walk_
from hfcompress.modules.chains import block_layers, blocks, chains
from hfcompress.modules.depth import block_influence
from hfcompress.modules.masked import MaskedWeight
from hfcompress.modules.matrix import matrix
from hfcompress.modules.packed import PackedEmbedding, PackedLinear, weight_matrix
from hfcompress.modules.parametrizations import find
from hfcompress.modules.storage import Packed
from hfcompress.ops.masks import keep_in_rows, keep_n_of_m, keep_share
from hfcompress.ops.moments import ColumnNorms, Gram
from hfcompress.ops.obs import inverse_factor, prune, quantize_in_order
from hfcompress.ops.quantization import Grid, quantize

CPU = torch.device("cpu")
_SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_QWEN = {"num_key_value_heads": 2, "head_dim": 8, "use_sliding_window": True, "sliding_window": 4}
MODELS = {
    "bert": lambda: make("bert"),
    "vit": lambda: make("vit"),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=99, n_embd=32, n_layer=3, n_head=4, n_positions=40, bos_token_id=1, eos_token_id=2)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SIZES, **_QWEN, max_window_layers=1)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**_T5, decoder_start_token_id=0)),
    "albert": lambda: AlbertForSequenceClassification(AlbertConfig(**_SIZES, embedding_size=16)),
    "swin": lambda: SwinForImageClassification(
        SwinConfig(image_size=16, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    ),
}


def build(name, dtype=torch.float32):
    torch.manual_seed(0)
    return MODELS[name]().to(dtype).eval()


def batches(name, count=3):
    generator = torch.Generator().manual_seed(1)
    if name in ("vit", "swin"):
        return [{"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)} for _ in range(count)]
    found = []
    for i in range(count):
        ids = torch.randint(3, 99, (2, 9 + i), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
        if name == "t5":
            found[-1]["labels"] = torch.randint(3, 99, (2, 7), generator=generator)
    return found


def paths_of(model):
    return [path for path, _ in block_layers(model)]


@pytest.fixture(scope="module")
def correlated():
    """A weight, and inputs whose columns share a few directions and differ in size."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(2000, 40, generator=generator) @ torch.randn(40, 192, generator=generator) / 40**0.5
    sizes = torch.logspace(-0.3, 0.3, 192)[torch.randperm(192, generator=generator)]
    inputs = (mixed + 0.3 * torch.randn(2000, 192, generator=generator)) * sizes
    return torch.randn(64, 192, generator=generator), inputs


def gram_of(inputs):
    gram = Gram(inputs.shape[1], CPU)
    gram.add(inputs)
    return gram.matrix


def error(inputs, weight, other):
    return float((inputs @ (weight - other).T).square().sum())


# --- tensors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, 0.3, 0.5, 0.99, 1.0])
def test_keep_share_keeps_exactly_the_largest_of_all_tensors(density):
    scores = [torch.randn(50, 7), torch.randn(300).abs() * 3, torch.full((40,), 0.5), torch.zeros(9), -torch.zeros(9)]
    masks = keep_share(scores, density)
    flat, kept = torch.cat([s.flatten() for s in scores]), torch.cat([m.flatten() for m in masks])
    order = torch.sort(flat, descending=True, stable=True).indices
    expected = torch.zeros_like(kept)
    expected[order[: round(density * len(flat))]] = True
    assert torch.equal(kept, expected)
    assert [m.shape for m in masks] == [s.shape for s in scores]


def test_masks_in_rows_and_in_groups_keep_what_they_say():
    scores = torch.rand(5, 24)
    assert keep_in_rows(scores, 0.25).sum(1).tolist() == [6] * 5
    mask = keep_n_of_m(scores, 2, 4)
    assert (mask.unflatten(1, (-1, 4)).sum(2) == 2).all()
    assert (
        scores.masked_fill(mask, 0).unflatten(1, (-1, 4)).amax(2)
        <= scores.masked_fill(~mask, 9).unflatten(1, (-1, 4)).amin(2)
    ).all()
    assert keep_n_of_m(torch.zeros(1, 4), 1, 4).tolist() == [[True, False, False, False]]


def test_inverse_factor_is_the_factor_of_the_damped_inverse(correlated):
    gram = gram_of(correlated[1])
    damped = gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(192)
    upper = inverse_factor(gram, 0.01).double()
    assert torch.equal(upper, upper.triu())
    assert torch.allclose(upper.T @ upper @ damped, torch.eye(192, dtype=torch.float64), atol=1e-3)


def test_inverse_factor_damps_more_where_it_must_and_refuses_nan():
    ones = torch.ones(64, 64)
    assert inverse_factor(ones.clone(), 1e-9).isfinite().all()
    dead = torch.diag(torch.tensor([2.0, 0.0, 2.0]))
    assert inverse_factor(dead, 1e-6)[1].tolist() == pytest.approx([0, 1, 0], abs=1e-4)
    with pytest.raises(DataError, match="NaN"):
        inverse_factor(ones * float("nan"))


@pytest.mark.parametrize("settings", [{"density": 0.5}, {"density": 0.3}, {"pattern": (2, 4)}, {"pattern": (4, 8)}])
def test_pruning_by_second_order_beats_input_norms_which_beat_weights_alone(correlated, settings):
    weight, inputs = correlated
    norms = inputs.norm(dim=0)

    def masked(scores):
        if "pattern" in settings:
            return weight * keep_n_of_m(scores, *settings["pattern"])
        return weight * keep_in_rows(scores, settings["density"])

    pruned = prune(weight, inverse_factor(gram_of(inputs)), **settings)
    errors = [error(inputs, weight, w) for w in (pruned, masked(weight.abs() * norms), masked(weight.abs()))]
    assert errors[0] < 0.6 * errors[1] and errors[1] < 0.8 * errors[2]
    kept = settings.get("density", 0.5)
    assert int((pruned != 0).sum()) == pytest.approx(kept * weight.numel(), abs=2)  # one rounding in each of two parts
    if "pattern" in settings:
        n, m = settings["pattern"]
        assert (pruned.unflatten(1, (-1, m)).count_nonzero(dim=2) == n).all()


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize(
    "grid", [Grid(4), Grid(3, group_size=64), Grid(2, symmetric=False, group_size=40), Grid("ternary")]
)
def test_rounding_in_order_beats_rounding_to_nearest(correlated, grid, order):
    weight, inputs = correlated
    gram = gram_of(inputs)
    perm = gram.diagonal().argsort(descending=True) if order else None
    factor = inverse_factor(gram if perm is None else gram[perm][:, perm])
    got, nearest = quantize_in_order(weight, factor, grid, order=perm), quantize(weight, grid)
    assert error(inputs, weight, got.dequantize()) < 0.5 * error(inputs, weight, nearest.dequantize())
    assert (got.scale.shape, got.codes.dtype) == (nearest.scale.shape, nearest.codes.dtype)
    if order:
        assert torch.equal(got.scale, nearest.scale)  # static: fitted to the weight as it was


def test_rounding_in_order_makes_nearly_no_error_in_eight_bits_and_keeps_zeros(correlated):
    weight, inputs = correlated
    weight = weight * (torch.rand(weight.shape) < 0.5)
    factor = inverse_factor(gram_of(inputs))
    for grid in (Grid(8, group_size=64), Grid(8, symmetric=False), Grid(3, symmetric=False, group_size=64)):
        got = quantize_in_order(weight, factor, grid).dequantize()
        assert (got[weight == 0] == 0).all()
    got = quantize_in_order(weight, factor, Grid(8)).dequantize()
    assert error(inputs, weight, got) < 1e-4 * error(inputs, weight, torch.zeros(()))


def test_moments_stream():
    inputs = torch.randn(30, 5)
    gram, norms = Gram(5, CPU), ColumnNorms(5, CPU)
    for part in inputs.split(7):
        gram.add(part)
        norms.add(part)
    assert torch.allclose(gram.matrix, inputs.T @ inputs, atol=1e-4)
    assert torch.allclose(norms.norms(), inputs.norm(dim=0))


# --- the walk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*TINY, *MORE} - {*CONVOLUTIONAL}))
def test_the_blocks_are_the_families(name):
    model = make(name)
    known = {block.path for block in blocks_of(model, family_of(model))}
    if name == "swin":  # its stages, with the layers between them
        assert blocks(model) == ["swin.encoder.layers.0", "swin.encoder.layers.1"]
    elif name == "albert":
        assert blocks(model) == ["albert.encoder.albert_layer_groups.0"]
    else:
        assert set(blocks(model)) == known


@pytest.mark.parametrize("name", MODELS)
def test_the_walk_gives_every_layer_the_inputs_of_the_full_forward_pass(name):
    model, data = build(name), batches(name)
    paths, got = paths_of(model), {}
    expected = observe_all(model, data, paths, Gram, "")
    walk_(model, data, paths, Gram, lambda layers, s: got.update(dict.fromkeys(layers, s.matrix)), "")
    assert set(got) == set(paths)
    assert all(torch.allclose(got[p], expected[p].matrix, atol=1e-5) for p in paths)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_blocks_that_are_called_differently_or_twice_are_known_as_such():
    found = {name: chains(build(name), batches(name)[0], blocks(build(name))) for name in MODELS}
    assert [(len(c.blocks), c.alike) for c in found["llama"]] == [(3, True)]
    assert [(len(c.blocks), c.alike) for c in found["qwen3"]] == [(3, False)]  # full and sliding attention
    assert [(len(c.blocks), c.alike) for c in found["t5"]] == [(2, False), (2, False)]
    assert found["albert"] == []


def test_a_block_sees_what_the_compressed_blocks_before_it_give():
    model, data = build("llama"), batches("llama")
    paths, got = paths_of(model), {}

    def halve(layers, statistic):
        got.update(dict.fromkeys(layers, statistic.matrix))
        for path in layers:
            model.get_submodule(path).weight.mul_(0.5)

    walk_(model, data, paths, Gram, halve, "")
    after = observe_all(model, data, paths, Gram, "")
    first = "model.layers.{}.self_attn.q_proj".format
    assert all(torch.allclose(got[first(i)], after[first(i)].matrix, atol=1e-4) for i in range(3))
    before = observe_all(build("llama"), data, paths, Gram, "")
    assert not torch.allclose(got[first(1)], before[first(1)].matrix, atol=1e-2)


def test_padding_of_multiple_choice_is_left_out():
    """Its masks are (batch, choices, length), its rows in the model one for each choice."""
    model = BertForMultipleChoice(build("bert").config).eval()
    ids = torch.randint(3, 99, (1, 2, 6))
    padded = {
        "input_ids": torch.cat([ids, torch.full((1, 2, 5), 77)], -1),
        "attention_mask": torch.tensor([1] * 6 + [0] * 5).expand(1, 2, 11),
    }
    paths = [path for path in paths_of(model) if "encoder" in path]
    found = [observe_all(model, [batch], paths, Gram, "") for batch in (padded, {"input_ids": ids})]
    assert all(torch.allclose(found[0][p].matrix, found[1][p].matrix, atol=1e-3) for p in paths)
    blocks = ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    changes = [block_influence(model, blocks, [batch]) for batch in (padded, {"input_ids": ids})]
    assert changes[0] == pytest.approx(changes[1], rel=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_padding_is_left_out(name):
    model = build(name)
    ids = torch.randint(3, 99, (1, 6))
    padded = {
        "input_ids": torch.cat([ids, torch.full((1, 5), 77)], 1),
        "attention_mask": torch.tensor([[1] * 6 + [0] * 5]),
    }
    paths = paths_of(model)
    with_padding = observe_all(model, [padded], paths, Gram, "")
    without = observe_all(model, [{"input_ids": ids}], paths, Gram, "")
    assert all(torch.allclose(with_padding[p].matrix, without[p].matrix, atol=1e-3) for p in paths)
    everything = observe_all(model, [{"input_ids": padded["input_ids"]}], paths, Gram, "")
    assert not torch.allclose(everything[paths[0]].matrix, without[paths[0]].matrix, atol=1e-1)


def test_one_block_has_statistics_at_a_time_and_equal_inputs_share_one():
    model, alive, most = build("llama"), weakref.WeakSet(), [0]

    def new(columns, device):
        gram = Gram(columns, device)
        alive.add(gram)
        most[0] = max(most[0], len(alive))
        return gram

    groups = []
    walk_(model, batches("llama"), paths_of(model), new, lambda layers, _: groups.append(sorted(layers)), "")
    assert most[0] == 4 and len(groups) == 4 * 3
    assert [f"model.layers.0.self_attn.{n}_proj" for n in "kqv"] in groups


def test_progress_rises_to_the_end():
    said = []
    config = WandaConfig(sparsity=0.5)
    compress(build("t5"), config, calibration=batches("t5"), on_progress=lambda text, share: said.append((share, text)))
    shares = [share for share, _ in said]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(set(shares)) > 4 * (3 + 3)  # passes and layers
    assert any("decoder.block.1" in text for _, text in said)


def test_interrupted_it_leaves_no_hook_and_restores_the_mode():
    model = build("llama").train()

    def stop(layers, statistic):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walk_(model, batches("llama"), paths_of(model), Gram, stop, "")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.training and model.config.use_cache


def test_what_is_never_reached_is_named():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = None
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))

        def forward(self, x):
            return self.blocks[0](x)

    model = Half()
    with pytest.raises(DataError, match=r"blocks.1.0 is never reached"):
        walk_(model, [{"x": torch.randn(3, 4)}], ["blocks.0.0", "blocks.1.0"], Gram, lambda *_: None, "")
    with pytest.raises(DataError, match="no calibration batches"):
        walk_(model, [], ["blocks.0.0"], Gram, lambda *_: None, "")


def test_layers_outside_of_blocks_come_last_from_the_compressed_model():
    model = make("bert")
    before = model.bert.pooler.dense.weight.clone()
    compress(model, WandaConfig(sparsity=0.5, targets=["bert.pooler.dense"]), calibration=calibration("bert"))
    weight = weight_matrix(model.bert.pooler.dense)
    assert (weight.count_nonzero(dim=1) == 16).all() and torch.equal(weight[weight != 0], before[weight != 0])


# --- methods --------------------------------------------------------------------------------------------------------


def weights(model):
    return {p: weight_matrix(m) for p, m in model.named_modules() if p in paths_of(model)}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("config", [WandaConfig, SparseGPTConfig])
def test_calibrated_pruning_is_exact(name, config):
    model = compress(build(name), config(sparsity=0.75), calibration=batches(name))
    for path, weight in weights(model).items():
        assert int(weight.count_nonzero()) == weight.numel() // 4, path
        assert config is SparseGPTConfig or (weight.count_nonzero(dim=1) == weight.shape[1] // 4).all()
        assert type(model.get_submodule(path)).__name__ in ("PackedLinear", "PackedConv1D")  # stored without its zeros


@pytest.mark.parametrize("name", ["gpt2", "bert"])
@pytest.mark.parametrize(
    "config",
    [
        WandaConfig(pattern=(2, 4)),
        SparseGPTConfig(pattern=(2, 4)),
        NOfMConfig(n=2, m=4),
        NOfMConfig(n=2, m=4, score="activations"),
    ],
    ids=lambda c: f"{type(c).__name__}-{getattr(c, 'score', '')}",
)
def test_n_of_m_holds_in_every_group_of_inputs(name, config):
    model = compress(build(name), config, calibration=batches(name))
    for path, weight in weights(model).items():
        assert (weight.unflatten(1, (-1, 4)).count_nonzero(dim=2) == 2).all(), path


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("name", sorted({*MORE} & {*WITH_LINEAR}))
def test_every_family_is_pruned_rounded_saved_and_loaded(name, tmp_path):
    model, base = make(name), make(name)
    compress(model, [SparseGPTConfig(sparsity=0.5), GPTQConfig(group_size=16)], calibration=calibration(name))
    layers = weights(model)
    assert layers and all(model.get_submodule(path).grid == Grid(4, group_size=16) for path in layers)
    assert all(int(w.count_nonzero()) <= 0.51 * w.numel() for w in layers.values())
    sizes = [save_checkpoint(m, tmp_path / key) / "model.safetensors" for key, m in (("a", base), ("b", model))]
    assert sizes[1].stat().st_size < sizes[0].stat().st_size
    loaded = load_model(tmp_path / "b", auto_class(name))
    assert torch.allclose(logits(model, name), logits(loaded, name), atol=1e-5)


def test_input_norms_change_what_n_of_m_keeps():
    by_weight = compress(build("gpt2"), NOfMConfig())
    by_input = compress(build("gpt2"), NOfMConfig(score="activations"), calibration=batches("gpt2"))
    path = "transformer.h.1.mlp.c_proj"
    masks = [weight_matrix(m.get_submodule(path)) != 0 for m in (by_weight, by_input)]
    assert 0.5 < (masks[0] == masks[1]).float().mean() < 1
    module = build("gpt2").get_submodule(path)
    norms = observe_all(build("gpt2"), batches("gpt2"), [path], ColumnNorms, "")[path].norms()
    assert torch.equal(masks[1], keep_n_of_m(matrix(module).abs() * norms, 2, 4))
    with pytest.raises(LifecycleError, match="calibration"):
        compress(build("gpt2"), NOfMConfig(score="activations"))


@pytest.mark.parametrize(
    "config", [WandaConfig(sparsity=0.5), SparseGPTConfig(sparsity=0.5), GPTQConfig(group_size=16)]
)
def test_a_bfloat16_model_stays_bfloat16(config):
    model = build("llama", torch.bfloat16)
    widest = [0]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
                widest[0] = max(widest[0], out.numel())
            return out

    with Watch():
        compress(model, config, calibration=batches("llama"))
    assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {torch.bfloat16}
    assert widest[0] <= 64 * 64  # no more than the largest Hessian
    assert model(**batches("llama")[0]).logits.isfinite().all()


def test_gptq_beats_rounding_and_packs_embeddings_when_asked():
    model, data = build("llama"), batches("llama", 8)
    with torch.no_grad():
        expected = [model(**b).logits[b["attention_mask"].bool()] for b in data]
    layers = paths_of(model)
    rounded = compress(build("llama"), QuantizeWeightsConfig(bits=2, group_size=16, clip="mse", targets=layers))
    ours = compress(build("llama"), GPTQConfig(bits=2, group_size=16), calibration=data)
    with torch.no_grad():
        errors = [
            sum(
                (m(**b).logits[b["attention_mask"].bool()] - e).square().sum()
                for b, e in zip(data, expected, strict=True)
            )
            for m in (ours, rounded)
        ]
    assert errors[0] < 0.9 * errors[1]
    assert type(ours.model.embed_tokens) is nn.Embedding and type(ours.lm_head) is nn.Linear
    tables = compress(build("llama"), GPTQConfig(group_size=16, embedding_bits=8), calibration=data)
    assert isinstance(tables.model.embed_tokens, PackedEmbedding) and tables.model.embed_tokens.grid == Grid(
        8, group_size=16
    )
    assert isinstance(tables.model.layers[0].mlp.up_proj, PackedLinear)
    assert all(m._wide is None for m in tables.modules() if isinstance(m, Packed))  # nothing is held twice


@pytest.mark.parametrize("later", [GPTQConfig(bits=4, group_size=16), QuantizeWeightsConfig(bits=4)])
@pytest.mark.parametrize("stages", [1, 2])
def test_pruned_weights_stay_zero_when_quantized(later, stages):
    wide = LlamaConfig(**{**_SIZES, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1})
    model, data, prune_first = LlamaForCausalLM(wide).eval(), batches("llama"), WandaConfig(sparsity=0.75)
    for configs in [[prune_first, later]] if stages == 1 else [[prune_first], [later]]:
        compress(model, configs, calibration=data)
    for path, weight in weights(model).items():
        layer = model.get_submodule(path)
        assert int(weight.count_nonzero()) <= weight.numel() // 4 and layer.grid.bits == 4, path
        assert layer.sparse or weight.numel() <= 64 * 64  # smaller ones don't pay


def test_magnitude_follows_its_schedule_and_masked_weights_do_not_learn():
    model = make("bert")
    method = Magnitude(MagnitudeConfig(sparsity=0.8, scope="model", schedule={"shape": "linear", "start": 0, "end": 1}))
    paths = method.prepare(model, Context(model))
    zeros = []
    for fraction in (0.0, 0.25, 0.5, 1.0):
        method.on_step(model, fraction)
        masks = [find(model, p, MaskedWeight).mask for p in paths]
        zeros.append(1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks))
    assert zeros == pytest.approx([0, 0.2, 0.4, 0.8], abs=1e-4)
    assert len({round(float(m.float().mean()), 3) for m in masks}) > 1  # layers compete
    model(**calibration("bert")[0]).loss.backward()
    layer, wrapper = model.get_submodule(paths[0]), find(model, paths[0], MaskedWeight)
    gradient = layer.parametrizations.weight.original.grad
    assert (gradient[~wrapper.mask] == 0).all() and gradient[wrapper.mask].abs().max() > 0
    kept, left = (
        layer.parametrizations.weight.original[wrapper.mask],
        layer.parametrizations.weight.original[~wrapper.mask],
    )
    assert kept.abs().min() > left.abs().median()


def test_magnitude_takes_any_layer_that_is_named():
    model = make("vit")
    name = "vit.embeddings.patch_embeddings.projection"
    compress(model, MagnitudeConfig(sparsity=0.5, targets=["Conv2d"]))
    assert int(weight_matrix(model.get_submodule(name)).count_nonzero()) == 32 * 48 // 2


def test_what_cannot_be_done_is_refused():
    for settings in ({"sparsity": 0.5, "pattern": (2, 4)}, {"pattern": (4, 4)}):
        with pytest.raises(ValidationError, match=r"set either sparsity|n of m"):
            WandaConfig(**settings)
    with pytest.raises(ValidationError, match="n must be below m"):
        NOfMConfig(n=4, m=4)
    run = partial(compress, calibration=batches("llama"))
    with pytest.raises(TargetError, match="its 32 inputs are no multiple of 5"):
        run(build("llama"), SparseGPTConfig(pattern=(2, 5)))
    with pytest.raises(TargetError, match="'lm_haed' matches no module"):
        run(build("llama"), WandaConfig(sparsity=0.5, targets=["lm_haed"]))
    packed = run(build("llama"), GPTQConfig(group_size=16))
    with pytest.raises(TargetError, match="packed already"):
        run(packed, WandaConfig(sparsity=0.5))
    with pytest.raises(TargetError, match="in few bits already"):
        run(packed, GPTQConfig())
    tied = build("gpt2")
    with pytest.raises(TargetError, match=r"shared with transformer\.wte"):
        run(tied, GPTQConfig(targets=["lm_head"]))
