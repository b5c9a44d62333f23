"""Low rank: the maths is optimal, every family computes with factors, and what follows sees plain layers."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from cases import CASES
from peft import LoraConfig, get_peft_model
from tiny import WITH_LINEAR, auto_class, calibration, corpus, is_image, logits, make
from torch import nn
from transformers.pytorch_utils import Conv1D

from hfcompress import (
    ActivationSVDConfig,
    CPConfig,
    DistillConfig,
    FactorizeEmbeddingsConfig,
    HFCompressTrainer,
    QuantizeWeightsConfig,
    SVDConfig,
    TuckerConfig,
    WeightedSVDConfig,
    compress,
)
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import CheckpointError, LifecycleError, RecipeError, TargetError
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.registry import create
from hfcompress.modules.blockwise import observe_all
from hfcompress.modules.chains import block_layers
from hfcompress.modules.factorized import CPConv2d, Factorized, TuckerConv2d
from hfcompress.modules.importance import weight_fisher
from hfcompress.modules.matrix import matrix
from hfcompress.modules.splitting import factorize_
from hfcompress.ops.lowrank import allocate_ranks, decompose, gram_root, largest_saving_rank, rank_of_energy
from hfcompress.ops.moments import Gram
from hfcompress.ops.tensors import cp, cp_product, tucker, tucker_product, tucker_ranks

ALL = WITH_LINEAR


def error(weight, cut, *, rows=None, inputs=None) -> float:
    """Return the squared error of (down, up), in the outputs on `inputs` (tokens, columns) or with weights on rows."""
    left = weight.double() - cut[1].double() @ cut[0].double()
    if inputs is not None:
        left = left @ inputs.double().T
    return float(((1 if rows is None else rows[:, None]) * left).square().sum())


# ------------------------------------------------------------------ maths


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
@pytest.mark.parametrize("tokens", [200, 7])
def test_each_decomposition_is_the_best_in_its_own_norm(shape, tokens):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator)
    inputs = torch.randn(tokens, shape[1], generator=generator) * torch.logspace(-2, 1, shape[1])
    rows = torch.rand(shape[0], generator=generator).double() * 10
    rows[0] = 0
    plain = decompose(weight)
    whitened = decompose(weight, root=gram_root(inputs.T @ inputs))
    weighted = decompose(weight, rows=rows)
    for rank in (1, 3, 6, 16):
        other = torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator)
        for best, norm in ((plain, {}), (whitened, {"inputs": inputs}), (weighted, {"rows": rows})):
            lost = error(weight, best.cut(rank), **norm)
            assert lost == pytest.approx(float(best.squares[rank:].sum()), rel=1e-4, abs=1e-3)
            for rival in (plain.cut(rank), whitened.cut(rank), weighted.cut(rank), other):
                assert lost <= error(weight, rival, **norm) * (1 + 1e-6) + 1e-6
    assert error(weight, whitened.cut(3), inputs=inputs) < 0.9 * error(weight, plain.cut(3), inputs=inputs)


def test_factors_share_the_size_of_each_component_and_cuts_are_nested():
    found = decompose(torch.randn(12, 8), root=gram_root(torch.randn(8, 8).double() @ torch.eye(8).double() * 3))
    down, up = found.cut(5)
    assert torch.allclose(down.norm(dim=1), up.norm(dim=0))
    fewer = found.cut(3)
    assert torch.equal(fewer[0], down[:3]) and torch.equal(fewer[1], up[:, :3])


def test_energy_gives_the_least_rank():
    squares = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert [rank_of_energy(squares, e) for e in (0.1, 0.4, 0.41, 0.7, 0.9, 0.99)] == [1, 1, 2, 2, 3, 4]
    assert rank_of_energy(torch.zeros(4), 0.9) >= 1


def test_ranks_under_a_budget_are_the_best_there_are():
    generator = torch.Generator().manual_seed(2)
    shapes = [(8, 8), (8, 16), (12, 6)]
    squares = [torch.rand(min(s), generator=generator).sort(descending=True).values for s in shapes]
    options = [[*range(1, largest_saving_rank(*s) + 1), None] for s in shapes]

    def cost(ranks) -> int:
        return sum(math.prod(s) if r is None else r * sum(s) for s, r in zip(shapes, ranks, strict=True))

    def lost(ranks) -> float:
        return sum(0.0 if r is None else float(x[r:].sum()) for x, r in zip(squares, ranks, strict=True))

    whole = sum(math.prod(s) for s in shapes)
    for keep in (0.4, 0.6, 0.8, 0.95):
        chosen = allocate_ranks(squares, shapes, keep, 1)
        assert cost(chosen) <= keep * whole
        best = min(lost(ranks) for ranks in itertools.product(*options) if cost(ranks) <= keep * whole)
        assert lost(chosen) == pytest.approx(best)
    with pytest.raises(TargetError, match="no more than"):
        allocate_ranks(squares, shapes, 0.05, 1)


def test_a_low_rank_layer_costs_nothing_and_a_full_rank_one_stays_whole():
    flat, steep = torch.ones(16), torch.tensor([1.0, 1.0, *[0.0] * 14])
    assert allocate_ranks([flat, steep], [(16, 16), (16, 16)], 0.7, 2) == [None, 2]


# ------------------------------------------------------------------ every family


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("name", ALL)
def test_every_family_computes_with_factors(name, tmp_path):
    model = compress(make(name), SVDConfig(rank=5))
    reference = make(name)
    layers = dict(block_layers(reference))
    with torch.no_grad():
        for path, layer in layers.items():
            split = model.get_submodule(path)
            assert isinstance(split, Factorized) and type(split.up) is type(split.down) is nn.Linear
            product = split.up.weight @ split.down.weight
            layer.weight.copy_(product.T if isinstance(layer, Conv1D) else product)
    assert torch.allclose(logits(model, name), logits(reference, name), atol=1e-4)
    assert not torch.allclose(logits(model, name), logits(make(name), name), atol=1e-3)
    loaded = load_model(save_checkpoint(model, tmp_path), auto_class(name))
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert torch.allclose(logits(loaded, name), logits(model, name), atol=1e-6)


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("name", ALL)
def test_every_family_is_calibrated(name):
    for config in (WeightedSVDConfig(keep=0.5, round_to=1), ActivationSVDConfig(keep=0.5, round_to=1)):
        model = compress(make(name), config, calibration=calibration(name))
        assert any(isinstance(m, Factorized) for m in model.modules())
        assert logits(model, name).isfinite().all()


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_outputs_are_kept_best_by_the_calibrated_method(name, sequential):
    """At equal rank no layer errs more in its own output than under plain SVD, where it reads the original inputs."""
    base = make(name)
    paths = [path for path, _ in block_layers(base)]
    plain = compress(make(name), SVDConfig(rank=5))
    calibrated = compress(make(name), ActivationSVDConfig(rank=5, sequential=sequential), calibration=calibration(name))
    better = 0
    for path, gram in observe_all(base, calibration(name), paths, Gram, "test").items():
        weight, root = matrix(base.get_submodule(path)), gram_root(gram.matrix)
        lost = [
            float(((weight - m.up.weight @ m.down.weight).detach().double() @ root).square().sum())
            for m in (plain.get_submodule(path), calibrated.get_submodule(path))
        ]
        if not sequential:
            assert lost[1] <= lost[0] * (1 + 1e-5)
        better += lost[1] < 0.99 * lost[0]
    assert better > len(paths) / 2


def test_embeddings_split_by_how_often_tokens_occur(tmp_path):
    base = make("bert")
    ids = torch.tensor([[10] * 8 + [11]])
    batches = [{"input_ids": ids, "labels": torch.tensor([0])}]
    model = compress(make("bert"), FactorizeEmbeddingsConfig(rank=1, smoothing=1e-3), calibration=batches)
    even = compress(make("bert"), FactorizeEmbeddingsConfig(rank=1, by_frequency=False), calibration=batches)

    def lost(of: nn.Module, token: int) -> float:
        tables = [m.bert.embeddings.word_embeddings(torch.tensor([token])) for m in (of, base)]
        return float(((tables[0] - tables[1]).norm() / tables[1].norm()).detach())

    assert lost(model, 10) < 0.1 < lost(even, 10)
    table = model.bert.embeddings.word_embeddings
    assert type(table.down) is nn.Embedding and table.down.padding_idx == table.padding_idx == 0
    loaded = load_model(save_checkpoint(model, tmp_path), auto_class("bert"))
    assert torch.allclose(logits(loaded, "bert"), logits(model, "bert"), atol=1e-6)


def test_what_is_split_trains_on_and_saves_less(tmp_path):
    """Factors recover under distillation, then go to 8 bits, and every step loads."""
    from tiny import Examples
    from transformers import TrainingArguments

    model = compress(make("bert"), ActivationSVDConfig(keep=0.4, round_to=1), calibration=calibration("bert"))
    args = TrainingArguments(str(tmp_path / "t"), max_steps=3, report_to=[], use_cpu=True, disable_tqdm=True)
    before = {n: p.clone() for n, p in model.named_parameters()}
    trainer = HFCompressTrainer(
        model=model, args=args, train_dataset=Examples("bert"), recipe=DistillConfig(), teacher=make("bert")
    )
    trainer.train()
    changed = [n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])]
    assert any(n.endswith("down.weight") for n in changed) and any(n.endswith("up.weight") for n in changed)
    sizes = [save_checkpoint(trainer.model, tmp_path / "split")]
    compress(trainer.model, QuantizeWeightsConfig())
    sizes.append(save_checkpoint(trainer.model, tmp_path / "packed"))
    assert (sizes[1] / "model.safetensors").stat().st_size < 0.6 * (sizes[0] / "model.safetensors").stat().st_size
    kinds = json.loads((sizes[1] / "config.json").read_text())["quantization_config"]["modules"]
    assert {"factorized_linear", "packed_linear"} <= {spec["kind"] for spec in kinds.values()}
    loaded = load_model(sizes[1], auto_class("bert"))
    assert torch.allclose(logits(loaded, "bert"), logits(trainer.model, "bert"), atol=1e-6)


def test_peft_sees_the_factors():
    model = compress(make("bert"), SVDConfig(rank=5))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["down", "up"]))
    assert sum("lora_A" in n for n, _ in adapted.named_parameters()) == 2 * len(list(block_layers(make("bert"))))


@pytest.mark.slow
def test_exported_factors_compute_the_same(tmp_path):
    from hfcompress.export.inputs import example_inputs
    from hfcompress.export.onnx import export_onnx
    from hfcompress.export.runtime import open_onnx

    model = compress(make("bert"), SVDConfig(rank=5))
    compress(model, FactorizeEmbeddingsConfig(rank=6, by_frequency=False))
    files = export_onnx(model, save_checkpoint(model, tmp_path), reduce_range=False)
    inputs = example_inputs(model, 3, 8, mask_zeros=True)
    engine = open_onnx(next(iter(files.values())), threads=1)
    with torch.inference_mode():
        wanted = model(**inputs).logits
    got = torch.as_tensor(engine({name: tensor.numpy() for name, tensor in inputs.items()}))
    assert torch.allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_fisher_is_the_mean_squared_gradient_of_single_examples(name):
    model, batches = make(name), calibration(name)
    paths = [path for path, _ in block_layers(model)][:2]
    found = weight_fisher(model, paths, batches, 0)
    wanted = dict.fromkeys(paths, 0.0)
    for one in batches:
        for i in range(4):
            model.zero_grad()
            model(**{key: value[i : i + 1] for key, value in one.items()}).loss.backward()
            for path in paths:
                layer = model.get_submodule(path)
                gradient = layer.weight.grad.T if isinstance(layer, Conv1D) else layer.weight.grad
                wanted[path] += gradient.square() / 16
    assert all(torch.allclose(found[path], wanted[path], rtol=1e-4, atol=1e-9) for path in paths)


def test_fisher_of_a_model_in_16_bits_is_summed_in_32():
    model, batches = make("bert"), calibration("bert")[:1]
    paths = [path for path, _ in block_layers(model)][:2]
    model.classifier.weight.data *= 1e-2  # gradients whose squares are no float16
    wanted = weight_fisher(model, paths, batches, 0)
    found = weight_fisher(model.half(), paths, batches, 0)
    for path in paths:
        assert found[path].dtype is torch.float32
        assert torch.allclose(found[path].sum(1), wanted[path].sum(1), rtol=0.1)


# ------------------------------------------------------------------ convolutions


@pytest.mark.parametrize("kind", [TuckerConv2d, CPConv2d])
@pytest.mark.parametrize(
    "more", [{}, {"stride": (2, 1), "padding": (1, 0)}, {"dilation": (1, 2)}, {"padding": "same", "bias": False}]
)
def test_factors_of_a_convolution_compute_their_product(kind, more):
    torch.manual_seed(0)
    holder = nn.Module()
    holder.conv = nn.Conv2d(5, 6, (3, 2), **more)
    kernel, x = holder.conv.weight.detach(), torch.randn(2, 5, 9, 8)
    if kind is TuckerConv2d:
        factors = dict(zip(("down", "core", "up"), tucker(kernel, 3, 4), strict=True))
        ranks, product = {"rank_in": 3, "rank_out": 4}, tucker_product(*factors.values())
    else:
        factors = dict(zip(("down", "vertical", "horizontal", "up"), cp(kernel, 7, 20, 0), strict=True))
        ranks, product = {"rank": 7}, cp_product(*factors.values())
    holder.conv.weight.data = product.float()
    wanted = holder.conv(x)
    factorize_(holder, "conv", kind, factors, **ranks)
    assert torch.allclose(holder.conv(x), wanted, atol=1e-5)


def test_kernels_of_low_rank_are_found_again():
    torch.manual_seed(0)
    factors = [torch.randn(n, 2) for n in (8, 6, 3, 3)]
    kernel = torch.einsum("or,ir,hr,wr->oihw", *factors)
    for product in (tucker_product(*tucker(kernel, 2, 2)), cp_product(*cp(kernel, 2, 200, 0))):
        assert (product - kernel).norm() < 1e-2 * kernel.norm()
    full = torch.randn(8, 6, 3, 3)
    assert torch.allclose(tucker_product(*tucker(full, 6, 8)).float(), full, atol=1e-5)
    inner, out = tucker_ranks(full, 0.5)
    assert 6 * inner + 9 * inner * out + 8 * out <= 0.5 * full.numel()
    assert tucker_ranks(full, 0.001) == (0, 0)


def test_the_patches_of_an_image_model_split(tmp_path):
    for config in (TuckerConfig(), CPConfig(sweeps=5)):
        model = compress(make("vit"), config)
        loaded = load_model(save_checkpoint(model, tmp_path / type(config).__name__), auto_class("vit"))
        assert torch.allclose(logits(loaded, "vit"), logits(model, "vit"), atol=1e-6)
        compress(model, QuantizeWeightsConfig())


# ------------------------------------------------------------------ what is refused


def test_what_saves_nothing_or_does_not_split_is_refused():
    with pytest.raises(TargetError, match=r"svd.rank: 16 saves nothing at .*query \(32 x 32\), .* at most 15 does"):
        compress(make("bert"), SVDConfig(rank=16))
    with pytest.raises(TargetError, match=r"svd\.energy: 0.999 leaves every layer whole"):
        compress(make("bert"), SVDConfig(energy=0.999))
    with pytest.raises(TargetError, match=r"svd\.keep: no more than"):
        compress(make("bert"), SVDConfig(keep=0.01))
    with pytest.raises(TargetError, match="factorize before packing"):
        compress(compress(make("bert"), QuantizeWeightsConfig()), SVDConfig(keep=0.5))
    with pytest.raises(TargetError, match="reads this weight itself"):
        compress(make("deberta-v2"), SVDConfig(rank=2, targets=["re:.*rel_embeddings"]))
    with pytest.raises(TargetError, match=r"table and the layer that gives logits \(transformer.wte, lm_head\)"):
        compress(make("gpt2-lm"), SVDConfig(rank=4, targets=["Embedding"]))
    with pytest.raises(TargetError, match=r"activation_svd.targets: 'Embedding' names embedding tables; .* low-rank"):
        compress(make("bert"), ActivationSVDConfig(keep=0.5, targets=["Embedding"]), calibration=calibration("bert"))
    with pytest.raises(TargetError, match="at most 24 does"):
        compress(make("bert"), FactorizeEmbeddingsConfig(rank=25))
    with pytest.raises(RecipeError, match="set one of rank"):
        create("svd", {"keep": 0.5, "rank": 4})
    with pytest.raises(LifecycleError, match="a stage of its own"):
        Lifecycle([create("svd", {"keep": 0.5}), create("quantize_weights", {})], training=False)
    model = make("vit")
    model.vit.embeddings.patch_embeddings.projection = nn.Conv2d(4, 32, 4, 4, groups=2)
    for config in (TuckerConfig, CPConfig):
        with pytest.raises(TargetError, match="4 channels are in 2 groups"):
            compress(model, config(targets=["Conv2d"]))
        with pytest.raises(TargetError, match="have their channels in groups"):
            compress(model, config())


def test_layers_that_gain_nothing_stay_whole_and_are_counted():
    model = make("bert")
    cycle = Lifecycle([create("svd", {"energy": 0.8, "round_to": 1})], training=False)
    cycle.prepare(model)
    report = cycle.finalize(model)["svd"]
    split = [m for m in model.modules() if isinstance(m, Factorized)]
    assert report["layers"] == len(split) > 0 and report["layers"] + report["layers_left_whole"] == 18
    assert report["weights_after"] < report["weights_before"]


def test_a_loader_that_does_not_know_factors_fails(tmp_path):
    import transformers

    model = compress(make("bert"), SVDConfig(rank=5))
    save_checkpoint(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("quantization_config", "attn_implementation", "experts_implementation"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change", [{"rank": 10**12}, {"rank": 0}, {"rank": "5"}, {"rank": 300}, {"in_features": 10**9}, {"more": 1}]
)
def test_a_hostile_spec_is_refused(change, tmp_path):
    model = compress(make("bert"), SVDConfig(rank=5))
    save_checkpoint(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    modules = config["quantization_config"]["modules"]
    next(spec for spec in modules.values() if spec["kind"] == "factorized_linear").update(change)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        load_model(tmp_path, auto_class("bert"))


def test_the_corpus_of_images_has_no_tokens():
    assert is_image("vit") and not list(corpus("vit").token_ids())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("heads", {"remove": 0.5}),
        ("ffn", {"remove": 0.5}),
        ("movement", {"heads": 0.5, "ffn": 0.5}),
        ("width", {"keep": 0.5}),
        ("vocabulary", {}),
        ("svd", {"rank": 2, "targets": ["FactorizedLinear"]}),
    ],
)
def test_what_cuts_structure_comes_before(name, settings):
    from tiny import tokenizer

    model = compress(make("bert"), SVDConfig(rank=5))
    compress(model, FactorizeEmbeddingsConfig(rank=4, by_frequency=False))
    method = create(name, settings)
    cycle = Lifecycle([method], training=method.needs.training)
    with pytest.raises(TargetError, match=r"before|matches no module"):
        cycle.prepare(model, processor=tokenizer("bert"), corpus=corpus("bert"))


@pytest.mark.parametrize("name", ["svd", "tucker", "cp", "factorize_embeddings"])
def test_a_model_that_is_cut_at_the_end_is_not_the_best_one_before(name):
    """The uncut model was measured, won, and was cut afterwards: nobody got what was the best."""
    cycle = Lifecycle([create(name, CASES[name].settings)], training=True)
    assert not cycle.settled(0.99) and cycle.settled(1.0)


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gptq", {"group_size": 4}),
        ("wanda", {}),
        ("sparsegpt", {}),
        ("qat", {}),
        ("smooth_quant", {}),
        ("mixed_bits", {"average_bits": 5}),
        ("bitsandbytes", {}),
        ("magnitude", {}),
        ("layers", {"keep": 2, "choose": "top"}),
    ],
)
def test_what_compresses_layers_takes_factors(name, settings, tmp_path):
    model = compress(make("bert"), SVDConfig(rank=5))
    method = create(name, settings)
    cycle = Lifecycle([method], training=not method.needs.calibration)
    cycle.prepare(model)
    cycle.observe(model, lambda: calibration("bert"))
    cycle.finalize(model)
    loaded = load_model(save_checkpoint(model.eval(), tmp_path), auto_class("bert"))
    assert torch.allclose(logits(loaded, "bert"), logits(model, "bert"), atol=1e-5)


def test_inspecting_a_checkpoint_with_factors(tmp_path):
    from rich.console import Console

    from hfcompress.run.inspect import inspect_checkpoint

    model = compress(make("bert"), SVDConfig(rank=5))
    compress(model, QuantizeWeightsConfig())
    save_checkpoint(model, tmp_path / "m")
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(inspect_checkpoint(str(tmp_path / "m")))
    text = console.export_text()
    assert "factors of rank 5" in text and "int8" in text


def masked() -> nn.Module:
    """Return a BERT that predicts masked words with its own table, and ties a bias besides."""
    from transformers import BertForMaskedLM

    torch.manual_seed(0)
    return BertForMaskedLM(make("bert").config).eval()


@pytest.mark.parametrize("name", ["gpt2-lm", "t5", "bert-mlm"])
def test_a_table_that_gives_logits_too_stays_one(name, tmp_path):
    model = masked() if name == "bert-mlm" else make(name)
    if name == "gpt2-lm":
        assert model.lm_head.weight is model.transformer.wte.weight
    key, auto = ("bert", "AutoModelForMaskedLM") if name == "bert-mlm" else (name, auto_class(name))
    cycle = Lifecycle([create("factorize_embeddings", {"rank": 6, "smoothing": 10})], training=False)
    cycle.prepare(model, corpus=corpus(key))
    cycle.step(model, 1.0)
    shown = logits(model, key)
    report = cycle.finalize(model)["factorize_embeddings"]
    assert torch.allclose(logits(model, key), shown, atol=1e-4)
    assert report["weights_after"] < 0.4 * report["weights_before"]
    tables = {
        id(m.down.weight if hasattr(m, "num_embeddings") else m.up.weight)
        for m in model.modules()
        if isinstance(m, Factorized)
    }
    assert len(tables) == 1 and sum(isinstance(m, Factorized) for m in model.modules()) > 1
    for stage in ("split", "packed"):
        if stage == "packed":
            compress(model, QuantizeWeightsConfig())
        first = save_checkpoint(model, tmp_path / stage)
        loaded = load_model(first, auto)
        ours, theirs = model.state_dict(), loaded.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
        assert torch.allclose(logits(loaded, key), logits(model, key), atol=1e-5)
        loaded.save_pretrained(tmp_path / "second")
        for file in ("model.safetensors", "config.json"):
            assert (tmp_path / "second" / file).read_bytes() == (first / file).read_bytes()
