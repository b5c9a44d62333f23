"""Layers and tables that share parameters: stored once, trained as one, loaded as one, exported as one."""

from __future__ import annotations

import json

import pytest
import torch
from project import text_project
from safetensors.torch import load_file
from test_checkpoint import load_in_fresh_process
from tiny import Examples, auto_class, calibration, logits, make
from torch import nn
from transformers import AutoModel, TrainingArguments

from hfcompress import ActivationSVDConfig, HFCompressTrainer, SVDConfig, WeightedSVDConfig, compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import CheckpointError, HFCompressError, LifecycleError, RecipeError, TargetError
from hfcompress.core.families import blocks_of, family_named
from hfcompress.core.registry import create
from hfcompress.measure.size import count_parameters
from hfcompress.methods.cluster_weights import ClusterWeightsConfig
from hfcompress.methods.entropy_coding import EntropyCodingConfig
from hfcompress.methods.heads import HeadsConfig
from hfcompress.methods.layers import LayersConfig
from hfcompress.methods.magnitude import MagnitudeConfig
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig
from hfcompress.methods.share_layers import ShareLayersConfig
from hfcompress.modules.blockwise import observe_all
from hfcompress.modules.factorized import Factorized
from hfcompress.modules.sharing import attach_shared, finish_sharing_, start_sharing_
from hfcompress.ops.lowrank import decompose, gram_root
from hfcompress.ops.moments import Gram
from hfcompress.recipe.load import load_recipe
from hfcompress.run.execute import run_recipe

PATH = "bert.encoder.layer.{}.intermediate.dense"


def layers(model: nn.Module) -> list[nn.Module]:
    return [model.get_submodule(PATH.format(i)) for i in range(3)]


@pytest.mark.parametrize(
    ("share", "init", "wanted"),
    [("all", "mean", (0.5, 0.5)), ("ffn", 1, (0.0, 1.0)), ("ffn", 0, (1.0, 0.0)), ("attention", "mean", None)],
)
def test_what_is_shared_and_where_it_starts(share, init, wanted):
    base, model = make("bert"), compress(make("bert"), ShareLayersConfig(group=2, share=share, init=init))
    first, second, third = (layer.weight for layer in layers(model))
    before = [layer.weight for layer in layers(base)]
    assert torch.equal(third, before[2])
    query = [model.get_submodule(f"bert.encoder.layer.{i}.attention.self.query").weight for i in range(2)]
    assert (query[0] is query[1]) == (share != "ffn") and (first is second) == (share != "attention")
    if wanted is None:
        assert torch.equal(first, before[0]) and torch.equal(second, before[1])
    else:
        assert torch.allclose(first, wanted[0] * before[0] + wanted[1] * before[1])


def test_importance_takes_the_block_that_changes_most():
    base = make("bert")
    nn.init.zeros_(base.bert.encoder.layer[0].output.dense.weight)
    nn.init.zeros_(base.bert.encoder.layer[0].attention.output.dense.weight)
    wanted = base.bert.encoder.layer[1].intermediate.dense.weight.clone()
    model = compress(base, ShareLayersConfig(group=2, init="importance"), calibration=calibration("bert"))
    assert torch.equal(layers(model)[0].weight, wanted)


def test_the_gradient_is_that_of_all_uses(tmp_path):
    torch.manual_seed(0)
    shared = compress(make("bert"), ShareLayersConfig())
    twin = make("bert")
    twin.load_state_dict(shared.state_dict())
    for model in (shared, twin):
        logits_ = model(input_ids=torch.arange(10)[None]).logits
        logits_.square().sum().backward()
    total = sum(layer.weight.grad for layer in layers(twin))
    assert torch.allclose(layers(shared)[0].weight.grad, total, atol=1e-4)
    assert count_parameters(shared)[0] < count_parameters(twin)[0]


def test_wrappers_pass_on_the_gradient_that_a_tie_will():
    names = [[f"{PATH.format(i)}.weight" for i in range(3)]]
    grads = []
    for finished in (False, True):
        model = make("bert")
        attach_shared(model, names)
        start_sharing_(model, names, [[0.5, 0.25, 0.25]])
        if finished:
            finish_sharing_(model, names)
        model(input_ids=torch.arange(10)[None]).logits.square().sum().backward()
        grads.append(model.get_parameter(names[0][0]).grad)
    assert torch.allclose(*grads, atol=1e-5)


def test_training_counts_one_parameter(tmp_path):
    args = TrainingArguments(
        str(tmp_path), max_steps=3, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    trainer = HFCompressTrainer(
        model=make("bert"), args=args, recipe=[ShareLayersConfig(group="all")], train_dataset=Examples("bert")
    )
    trainer.train()
    first, *others = layers(trainer.model)
    assert all(layer.weight is first.weight and layer.bias is first.bias for layer in others)
    wanted = sum(layer.weight for layer in layers(make("bert"))) / 3
    assert not torch.allclose(first.weight, wanted, atol=1e-4)


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "t5", "swin"])
@pytest.mark.parametrize("then", [None, QuantizeWeightsConfig(), ClusterWeightsConfig(rows=8), EntropyCodingConfig()])
def test_one_copy_lies_on_disk(name, then, tmp_path):
    model = compress(make(name), ShareLayersConfig(group=2))
    if then is not None:
        compress(model, then)
    file = save_checkpoint(model, tmp_path / "one") / "model.safetensors"
    distinct = {t.data_ptr(): t for t in model.state_dict().values() if t.numel()}
    assert len([t for t in load_file(file).values() if t.numel()]) == len(distinct)
    loaded = load_model(file.parent, auto_class(name))
    ours, theirs = model.state_dict(keep_vars=True), loaded.state_dict(keep_vars=True)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert len({id(t) for t in ours.values()}) == len({id(t) for t in theirs.values()})
    assert torch.allclose(logits(model, name), logits(loaded, name), atol=1e-5)
    again = save_checkpoint(loaded, tmp_path / "two")
    for part in ("model.safetensors", "config.json"):
        assert (again / part).read_bytes() == (file.parent / part).read_bytes()
    base = AutoModel.from_pretrained(file.parent)
    own = json.loads((file.parent / "config.json").read_text())["quantization_config"]["ties"]
    assert own and all(base.get_parameter(t) is base.get_parameter(s) for t, s in own.items() if "/" not in t)


def test_without_the_import_it_fails_loudly(tmp_path):
    folder = save_checkpoint(compress(make("bert"), ShareLayersConfig()), tmp_path / "shared")
    status, _, found = load_in_fresh_process(folder, "bert", tmp_path)
    assert status == 0 and found is not None
    status, stderr, _ = load_in_fresh_process(folder, "bert", tmp_path, with_import=False)
    assert status != 0 and "pip install hfcompress; import hfcompress" in stderr


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (MagnitudeConfig(), "shared with"),
        (HeadsConfig(remove=0.5), "shared with"),
        (LayersConfig(keep=2, choose="top"), "drop blocks before sharing"),
        (ShareLayersConfig(group=2), "share it already"),
    ],
)
def test_what_would_untie_is_refused(method, reason):
    model = compress(make("bert"), ShareLayersConfig(group=2))
    with pytest.raises(HFCompressError, match=reason):
        compress(model, method, calibration=calibration("bert"))


@pytest.mark.parametrize("groups", [[[0, 2]], [[2, 1, 0]]])
def test_groups_of_ones_own_choice(groups):
    base, model = layers(make("bert")), layers(compress(make("bert"), ShareLayersConfig(group=groups)))
    mean = sum(base[i].weight for i in groups[0]) / len(groups[0])
    for i, layer in enumerate(model):
        inside = i in groups[0]
        assert (layer.weight is model[groups[0][0]].weight) == inside
        assert torch.allclose(layer.weight, mean if inside else base[i].weight, atol=1e-6)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("first", ["share", "split"])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("t5", SVDConfig(keep=0.5)),
        ("gpt2", WeightedSVDConfig(keep=0.5)),
        ("bert", ActivationSVDConfig(keep=0.5)),
    ],
)
def test_low_rank_and_sharing_combine_in_either_order(name, method, first, tmp_path):
    model, share = make(name), ShareLayersConfig(group=2)
    if first == "split":
        method = type(method)(rank=4)  # ranks that agree
    for step in (share, method) if first == "share" else (method, share):
        compress(model, step, calibration=calibration(name))
    shared = [m for m in model.modules() if isinstance(m, Factorized)]
    factors = {id(m.down.weight) for m in shared}
    assert 0 < len(factors) < len(shared) and len({id(m.up.weight) for m in shared}) == len(factors)
    for then in (None, QuantizeWeightsConfig()):
        if then is not None:
            compress(model, then)
        folder = save_checkpoint(model, tmp_path / str(then is None))
        distinct = {t.data_ptr(): t for t in model.state_dict().values() if t.numel()}
        assert len([t for t in load_file(folder / "model.safetensors").values() if t.numel()]) == len(distinct)
        loaded = load_model(folder, auto_class(name))
        assert torch.equal(logits(model, name), logits(loaded, name))
        ours, theirs = ({id(p) for p in m.parameters() if p.numel()} for m in (model, loaded))
        assert len(ours) == len(theirs)


def test_the_gradient_of_shared_factors_is_that_of_all_uses():
    shared, twin = compress(compress(make("bert"), ShareLayersConfig()), SVDConfig(rank=4)), make("bert")
    compress(twin, SVDConfig(rank=4))
    twin.load_state_dict(shared.state_dict())
    for model in (shared, twin):
        model(input_ids=torch.arange(10)[None]).logits.square().sum().backward()
    total = sum(layer.down.weight.grad for layer in layers(twin))
    assert torch.allclose(layers(shared)[0].down.weight.grad, total, atol=1e-4)
    assert count_parameters(shared)[0] < count_parameters(twin)[0]


def test_shared_factors_are_the_best_there_are():
    """Before sharing: of the mean product. After it, by activations: of the outputs of all uses together."""
    split, data = [compress(make("bert"), SVDConfig(rank=4)) for _ in range(2)], calibration("bert")
    mean = sum((layer.up.weight @ layer.down.weight).detach() for layer in layers(split[0])) / 3
    first = layers(compress(split[1], ShareLayersConfig()))[0]
    wanted = decompose(mean).squares[4:].sum()
    found = (first.up.weight @ first.down.weight).detach()
    assert float((found - mean).square().sum()) == pytest.approx(float(wanted), rel=1e-3)

    model = compress(make("bert"), ShareLayersConfig())
    paths = [PATH.format(i) for i in range(3)]
    grams = observe_all(model, data, paths, Gram, "")
    root = gram_root(sum(grams[path].matrix for path in paths))
    weight = layers(model)[0].weight.detach().clone()
    wanted = decompose(weight, root=root).squares
    compress(model, ActivationSVDConfig(rank=4, targets=paths), calibration=data)
    cut = (layers(model)[0].up.weight @ layers(model)[0].down.weight).detach()
    error = ((weight - cut).double() @ root).square().sum()
    assert float(error) == pytest.approx(float(wanted[4:].sum()), rel=1e-3)


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(TargetError, match=r"share_layers.group: there is no block 3: this model has 3"):
        compress(make("bert"), ShareLayersConfig(group=[[0, 3]]))
    with pytest.raises(TargetError, match=r"share_layers.group: blocks 0 and \d are of two stacks"):
        compress(make("swin"), ShareLayersConfig(group=[[0, len(blocks_of(make("swin"), family_named("swin"))) - 1]]))
    for groups, match in (([], "an empty list"), ([[0]], "at least 2"), ([[0, 1], [1, 2]], "block 1 is listed twice")):
        with pytest.raises(RecipeError, match=match):
            create("share_layers", {"group": groups})
    with pytest.raises(TargetError, match=r"other sizes or another kind in bert.encoder.layer.1, .* splitting them"):
        compress(compress(make("bert"), SVDConfig(rank=4, targets=[PATH.format(0)])), ShareLayersConfig())
    with pytest.raises(TargetError, match=r"share a weight, which is split once, .*leave `sequential` out"):
        shared = compress(make("bert"), ShareLayersConfig())
        compress(shared, ActivationSVDConfig(rank=4, sequential=True), calibration=calibration("bert"))
    with pytest.raises(TargetError, match="give 2 or more"):
        compress(make("bert"), ShareLayersConfig(group=1))
    with pytest.raises(TargetError, match="has a neighbour"):
        compress(make("albert"), ShareLayersConfig())
    with pytest.raises(TargetError, match="packed in few bits already"):
        compress(compress(make("bert"), QuantizeWeightsConfig()), ShareLayersConfig())
    with pytest.raises(LifecycleError, match="a stage of its own"):
        compress(make("bert"), [ShareLayersConfig(), QuantizeWeightsConfig()])


def test_a_hostile_tie_is_refused(tmp_path):
    folder = save_checkpoint(compress(make("bert"), ShareLayersConfig()), tmp_path / "shared")
    config = json.loads((folder / "config.json").read_text())
    ties = config["quantization_config"]["ties"]
    target, source = next((t, s) for t, s in ties.items() if t.endswith("dense.weight"))
    for bad in ({target: 3}, {target: "no.such.weight"}, {target: "embeddings.LayerNorm.weight"},
                {target: target}, {source: target}):  # fmt: skip
        changed = {**config, "quantization_config": {**config["quantization_config"], "ties": {**ties, **bad}}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError):
            load_model(folder, auto_class("bert"))


def test_a_run_that_only_shares_says_that_loading_needs_the_import(tmp_path):
    stages = [{"methods": {"share_layers": {"group": 2}}}]
    result = run_recipe(load_recipe(text_project(tmp_path, stages=stages)), tmp_path / "out")
    assert not result.structure and result.loads_with == "hfcompress"
    assert "import hfcompress" in (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
