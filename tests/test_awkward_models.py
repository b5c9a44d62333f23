"""Models whose parts are no plain layers: what can't be compressed is left alone and named, and the model runs."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from awkward import answers, build, inputs, same, standing
from torch import nn

from hfcompress import GPTQConfig, MagnitudeConfig, QuantizeWeightsConfig, SVDConfig, compress
from hfcompress.checkpoint import attach_structure_
from hfcompress.checkpoint.structure import apply_structure_
from hfcompress.core.errors import CheckpointError, HFCompressError, TargetError
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.registry import create
from hfcompress.core.weight_reads import read_directly
from hfcompress.methods.cluster_weights import ClusterWeightsConfig
from hfcompress.methods.mixed_bits import MixedBitsConfig
from hfcompress.methods.smooth_quant import SmoothQuantConfig
from hfcompress.methods.wanda import WandaConfig
from hfcompress.modules.own_tables import PackedTable
from hfcompress.modules.packed import PackedLinear
from hfcompress.modules.packed_parameters import PackedParameter
from hfcompress.modules.parametrizations import strip_, wrapped
from hfcompress.modules.plain_names import clean_state_dict
from hfcompress.modules.storage import Packed
from hfcompress.train.compress import run_oneshot
from hfcompress.train.stages import stages_of

NAMES = ("bart", "gemma", "hubert", "llama4", "mamba", "mixtral", "opt", "whisper")


@pytest.mark.parametrize("name", NAMES)
def test_quantized_it_runs_and_reloads_exactly(name, tmp_path):
    model = build(name)
    before = answers(model)
    compress(model, QuantizeWeightsConfig())
    after = answers(model)
    assert 0 < float((after - before).norm() / before.norm()) < 0.2
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert torch.equal(answers(loaded.eval()), after)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(answers(loaded.dequantize()), after)
    assert not any(isinstance(module, Packed) for module in loaded.modules())
    loaded.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text(encoding="utf-8"))
    assert torch.equal(answers(type(model).from_pretrained(tmp_path / "plain").eval()), after)


# ---------------------------------------------------------------------- weights that the model reads itself


class Reads(nn.Module):
    """Reads weights in all the ways that count, and in those that don't."""

    def __init__(self, exact=False):
        super().__init__()
        self.exact, self.level = exact, 1
        names = ("table", "alias", "shaped", "called", "fused", "slow", "cast")
        for name in names:
            self.add_module(name, nn.Linear(4, 4))
        self.many = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.called.weight.data.zero_()

    def forward(self, x):
        if self.training and x is not None:
            x = x @ self.fused.weight
        if self.level > 1 or self.exact:
            x = x @ self.slow.weight
        layer = self.alias
        for each in self.many:
            x = x @ each.weight
        x = x.view(-1, self.shaped.weight.shape[1]).to(self.cast.weight.dtype)
        return self.called(x) + self.table.weight + layer.weight


def test_weights_that_are_read_are_found_in_the_source():
    read = {"table", "alias", "shaped", "many.0", "many.1"}
    assert read_directly(Reads()) == read
    assert read_directly(Reads(exact=True)) == {*read, "slow"}
    assert read_directly(nn.Sequential(Reads()))


def test_what_mamba_reads_stays_as_it_is_and_is_refused_when_named():
    model = build("mamba")
    assert {path.rpartition(".")[2] for path in read_directly(model)} == {"dt_proj", "conv1d"}
    before = standing(model)
    for config in (QuantizeWeightsConfig, SVDConfig, ClusterWeightsConfig):
        more = {"keep": 0.5} if config is SVDConfig else {}
        with pytest.raises(TargetError, match=r"reads (its|this) weight itself"):
            compress(model, config(targets=["re:.*dt_proj"], **more))
        assert same(before, standing(model))
    adapters = [create("lora", {"targets": ["re:.*dt_proj"]})]
    with pytest.raises(TargetError, match="reads its weight itself"):
        Lifecycle(adapters, training=True).prepare(model)
    assert same(before, standing(model))
    compress(model, QuantizeWeightsConfig())
    mixer = model.backbone.layers[0].mixer
    assert type(mixer.dt_proj) is nn.Linear
    assert type(mixer.in_proj) is type(mixer.x_proj) is type(mixer.out_proj) is PackedLinear


def test_pruning_leaves_a_weight_that_is_read_in_its_place():
    model = build("mamba")
    compress(model, MagnitudeConfig(sparsity=0.9))
    assert type(model.backbone.layers[0].mixer.dt_proj) is nn.Linear
    assert torch.isfinite(answers(model)).all()


# ---------------------------------------------------------------------- parametrizations that are the model's own


def test_a_models_own_parametrization_is_left_alone(tmp_path):
    model = build("hubert")
    names, before = set(clean_state_dict(model)), answers(model)
    assert names == set(model.state_dict())
    strip_(model)
    assert torch.equal(answers(model), before) and not wrapped(model)
    compress(model, [MagnitudeConfig(sparsity=0.5), QuantizeWeightsConfig()])
    assert {name for name in names if "parametrizations" in name} <= set(clean_state_dict(model))


def test_a_table_with_its_own_parametrization_is_no_target():
    model = build("opt")
    nn.utils.parametrizations.weight_norm(model.model.decoder.layers[0].fc1)
    before = answers(model)
    compress(model, QuantizeWeightsConfig())
    assert type(model.model.decoder.layers[0].fc2) is PackedLinear
    assert not isinstance(model.model.decoder.layers[0].fc1, Packed)
    assert torch.allclose(answers(model), before, rtol=0.2, atol=0.5)
    with pytest.raises(TargetError, match="parametrization"):
        compress(build_normed(), QuantizeWeightsConfig(targets=["re:.*fc1"]))


def build_normed():
    model = build("opt")
    nn.utils.parametrizations.weight_norm(model.model.decoder.layers[0].fc1)
    return model


# ---------------------------------------------------------------------- tables that do more than look up


@pytest.mark.parametrize("name, tables", [("bart", 5), ("gemma", 1), ("opt", 1)])
def test_tables_with_a_way_of_their_own_are_packed(name, tables):
    model = build(name)
    compress(model, QuantizeWeightsConfig())
    found = [module for module in model.modules() if isinstance(module, PackedTable)]
    assert len(found) == tables
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_file_cannot_give_a_table_other_sizes_or_a_scale():
    model = compress(build("gemma"), QuantizeWeightsConfig())
    structure = attach_structure_(model)
    spec = structure["embed_tokens"]
    assert spec["kind"] == "packed_table"
    for wrong in ({"num_embeddings": 10**9}, {"embedding_dim": 1}, {"scale": 1e300}, {"num_embeddings": True}):
        with pytest.raises(CheckpointError, match="embed_tokens"):
            apply_structure_(build("gemma"), {"embed_tokens": {**spec, **wrong}})
    with pytest.raises(CheckpointError, match="can't stand for"):
        apply_structure_(build("mixtral"), {"embed_tokens": spec})


def test_what_cannot_be_packed_is_named_with_its_share(caplog):
    with caplog.at_level(logging.WARNING):
        report = run_oneshot(build("mamba"), stages_of([QuantizeWeightsConfig()])[0])
    assert "mixer.dt_proj (Linear: the model reads its weight itself)" in caplog.text
    assert 0 < report["quantize_weights"]["weights_not_covered"] < 0.3


def test_a_layer_that_computes_in_its_own_way_keeps_doing_so():
    model = build("whisper")
    compress(model, QuantizeWeightsConfig())
    positions = model.model.decoder.embed_positions
    assert isinstance(positions.packed_weight, PackedParameter)
    assert positions.weight.shape == (positions.num_embeddings, positions.embedding_dim)
    with pytest.raises(TargetError, match="can't be packed"):
        compress(build("whisper"), ClusterWeightsConfig(targets=["re:.*decoder.embed_positions"]))


# ---------------------------------------------------------------------- experts


def test_experts_are_packed_by_default_and_by_name(tmp_path):
    model = build("mixtral")
    size = sum(t.nbytes for t in model.state_dict().values())
    report = run_oneshot(model, stages_of([QuantizeWeightsConfig(bits=4)])[0])["quantize_weights"]
    assert sum(t.nbytes for t in model.state_dict().values()) < 0.3 * size
    assert report["weights_not_covered"] < 0.05
    assert sum(isinstance(module, PackedParameter) for module in model.modules()) == 4
    named = compress(build("mixtral"), QuantizeWeightsConfig(targets=["MixtralExperts"]))
    assert {type(m) for m in named.modules() if isinstance(m, Packed)} == {PackedParameter}
    left = compress(build("mixtral"), QuantizeWeightsConfig(ignore=["re:.*experts"]))
    assert not any(isinstance(module, PackedParameter) for module in left.modules())


def test_a_file_cannot_ask_for_parameters_that_are_not_there():
    model = compress(build("mixtral"), QuantizeWeightsConfig())
    path, spec = next((p, s) for p, s in attach_structure_(model).items() if s["kind"] == "packed_parameter")
    wrong = [
        (path, {**spec, "shape": [10**6, 10**6, 10**6]}),
        (path, {**spec, "grid": None}),
        (path, {**spec, "grid": {"bits": 77}}),
        (path, {**spec, "more": 1}),
        (path.replace("packed_", ""), spec),
        (path + "x", spec),
        ("nowhere.packed_weight", spec),
    ]
    for where, description in wrong:
        with pytest.raises(CheckpointError, match=r"packed_|experts"):
            apply_structure_(build("mixtral"), {where: description})


@pytest.mark.parametrize("config", [GPTQConfig(bits=4), SVDConfig(keep=0.8), MagnitudeConfig(sparsity=0.5)])
def test_methods_that_leave_experts_say_so(config, caplog):
    model = build("mixtral")
    with caplog.at_level(logging.WARNING):
        report = run_oneshot(model, stages_of([config])[0], calibration=[inputs(model)])
    (numbers,) = report.values()
    assert numbers["weights_not_covered"] > 0.4
    assert "of the weights are not covered" in caplog.text and "experts.gate_up_proj" in caplog.text


# ---------------------------------------------------------------------- refusals

METHODS = {
    "gptq": lambda: GPTQConfig(bits=4, embedding_bits=8),
    "smooth_quant": SmoothQuantConfig,
    "mixed_bits": lambda: MixedBitsConfig(average_bits=5),
    "cluster_weights": lambda: ClusterWeightsConfig(clusters=16, rows=None),
    "wanda": lambda: WandaConfig(sparsity=0.5),
    "svd": lambda: SVDConfig(keep=0.5),
}


FAST = {
    ("gptq", "bart"),
    ("gptq", "llama4"),
    ("smooth_quant", "mamba"),
    ("cluster_weights", "hubert"),
    ("svd", "llama4"),
}


@pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param(method, name, marks=() if (method, name) in FAST else pytest.mark.slow)
        for method in METHODS
        for name in ("bart", "hubert", "llama4", "mamba")
    ],
)
def test_a_method_either_refuses_and_changes_nothing_or_leaves_a_model_that_runs(method, name):
    model = build(name)
    before = standing(model)
    try:
        compress(model, METHODS[method](), calibration=[inputs(model)])
    except HFCompressError:
        assert same(before, standing(model))
    assert torch.isfinite(answers(model)).all()


@pytest.mark.parametrize("large", [False, True])
def test_gptq_refuses_layers_no_batch_reaches_before_it_packs(large, monkeypatch):
    monkeypatch.setattr("hfcompress.train.undo.is_large", lambda model: large)
    model = build("gemma")
    model.model.layers.append(model.model.layers[0].__class__(model.config, 1))
    model.config.num_hidden_layers = 2  # so that the third is never called
    before = standing(model)
    with pytest.raises(HFCompressError, match="never reached"):
        compress(model, GPTQConfig(bits=4, embedding_bits=8), calibration=[inputs(model)])
    assert same(before, standing(model))
