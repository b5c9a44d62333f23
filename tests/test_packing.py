"""Weights at rest: grids, packed layers, sparse layers, ties, and what a file may not ask for."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tiny import auto_class, logits, make
from torch import nn
from transformers import AutoModel, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from hfcompress import compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import CheckpointError, TargetError
from hfcompress.measure.size import count_parameters
from hfcompress.methods.mixed_bits import MixedBitsConfig
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig
from hfcompress.modules.matrix import matrix
from hfcompress.modules.packed import PackedConv1D, PackedConv2d, PackedEmbedding, PackedLinear, dequantize_, pack_
from hfcompress.modules.parametrizations import attach
from hfcompress.modules.rounding import rounding_for
from hfcompress.modules.sparse import pack_sparse_
from hfcompress.modules.spec import build, spec_of
from hfcompress.ops.packing import pack, packed_size, unpack, unpack_at
from hfcompress.ops.quantization import Grid, encode, fit, pack_codes, quantize, unpack_codes

BITS = (8, 6, 4, 3, 2, 1, "ternary")
GRIDS = [
    *(Grid(bits, group_size=size) for bits in BITS for size in (None, 7)),
    *(Grid(bits, symmetric=False, group_size=size) for bits in (8, 4, 3, 2) for size in (None, 16)),
    *(Grid(bits, per_tensor=True) for bits in (8, 3, "ternary", 1)),
    Grid(4, symmetric=False, per_tensor=True),
]
SHAPES = [(5, 33), (16, 48), (1, 1)]
LAYERS = {
    "linear": lambda: nn.Linear(33, 12),
    "linear-plain": lambda: nn.Linear(40, 6, bias=False),
    "embedding": lambda: nn.Embedding(19, 33, padding_idx=1),
    "conv1d": lambda: Conv1D(12, 33),
    "conv2d": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, groups=2),
}


def name_of(grid: Grid) -> str:
    return f"{grid.bits}{'' if grid.symmetric else 'z'}-{'tensor' if grid.per_tensor else grid.group_size}"


def weights(shape: tuple[int, int]) -> list[torch.Tensor]:
    """Rows of many sizes, with an outlier, all positive, and with a row of zeros."""
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.logspace(-4, 2, shape[0])[:, None]
    outlier, zeros = weight.clone(), weight.clone()
    outlier[0, 0], zeros[-1] = 50.0, 0.0
    return [weight, outlier, weight.abs() + 1, zeros]


def inputs(layer: nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    if isinstance(layer, nn.Embedding | PackedEmbedding):
        return torch.tensor([[0, 18, 3], [3, 1, 7]])
    return torch.randn(2, 4, 9, 8) if isinstance(layer, nn.Conv2d | PackedConv2d) else torch.randn(2, 3, columns(layer))


def columns(layer: nn.Module) -> int:
    return layer.nx if isinstance(layer, Conv1D | PackedConv1D) else layer.in_features


def layer(name: str, zeros: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    made = LAYERS[name]()
    with torch.no_grad():
        made.weight.normal_().mul_(torch.rand(made.weight.shape) >= zeros)
    return nn.Sequential(made).eval()


@pytest.mark.parametrize("width", BITS)
def test_a_stream_of_numbers_comes_back_and_wastes_no_bit(width):
    base = 3 if width == "ternary" else 2**width
    for count in (1, 4, 5, 7, 8, 9, 64, 201):
        digits = torch.randint(0, base, (count,), dtype=torch.uint8)
        packed = pack(digits, width)
        assert len(packed) == packed_size(count, width)
        assert len(packed) == math.ceil(count / 5) if width == "ternary" else math.ceil(count * width / 8)
        assert torch.equal(unpack(packed, width, count), digits)
        at = torch.randint(0, count, (2, 3))
        assert torch.equal(unpack_at(packed, width, at), digits[at])


@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
def test_quantizing_again_changes_nothing_and_mse_is_no_worse(grid):
    for shape, clip in [*((shape, "max") for shape in SHAPES), (SHAPES[0], "mse")]:
        for weight in weights(shape):
            stored = quantize(weight, grid, clip)
            back = stored.dequantize()
            again = quantize(back, grid, clip)
            assert torch.equal(again.codes, stored.codes) and torch.equal(again.scale, stored.scale)
            assert stored.zero is None or torch.equal(again.zero, stored.zero)
            assert torch.equal(
                unpack_codes(pack_codes(stored.codes, grid), grid, weight.numel()).view(shape), stored.codes
            )
            if clip == "mse":
                plain = (quantize(weight, grid).dequantize() - weight).square().sum()
                assert (back - weight).square().sum() <= plain * (1 + 1e-6)
            elif grid.bits not in (1, "ternary"):
                step = stored.scale.float().repeat_interleave(grid.group_size or shape[1], 1)[:, : shape[1]]
                loss = 0.502 if grid.symmetric else 1.01 + grid.last * 2**-7  # a zero point rounds, a scale gives way
                assert ((back - weight).abs() <= loss * step + 1e-12).all()


def test_mse_clipping_matches_an_exhaustive_search():
    weight = torch.randn(1, 256)
    scale, _ = fit(weight, Grid(3), "mse")
    tried = torch.linspace(0.05, 1.5, 3000)[:, None]
    best = ((torch.round(weight / tried).clamp(-3, 3) * tried - weight) ** 2).sum(1)
    assert quantize(weight, Grid(3), "mse").dequantize().sub(weight).square().sum() <= 1.01 * best.min()
    assert abs(scale.item() / tried[best.argmin()].item() - 1) < 0.05


def test_ternary_and_binary_scales_are_those_of_the_papers():
    weight = torch.randn(2, 500)
    size = weight.abs()
    assert torch.allclose(fit(weight, Grid(1))[0].float()[:, 0], size.mean(1), rtol=2**-8)
    for row, scale in zip(size, fit(weight, Grid("ternary"))[0].float(), strict=True):
        assert scale.item() == pytest.approx(row[row > 0.7 * row.mean()].mean().item(), rel=2**-8)
    thresholds = [
        (row.sort().values, row, s) for row, s in zip(size, fit(weight, Grid("ternary"), "mse")[0].float(), strict=True)
    ]
    for levels, row, scale in thresholds:
        errors = [((row - row[row > t].mean() * (row > t)) ** 2).sum() for t in levels[:-1]]
        ours = ((row - scale * (row > scale / 2)) ** 2).sum()
        assert ours <= 1.001 * min(errors)


def test_the_codes_of_some_columns_are_those_of_the_whole():
    """Methods that quantize column by column fit a group and encode its columns one at a time."""
    weight, grid = torch.randn(4, 20), Grid(4, symmetric=False, group_size=8)
    whole = quantize(weight, grid)
    for j in range(20):
        scale, zero = (t[:, j // 8 : j // 8 + 1] for t in (whole.scale, whole.zero))
        assert torch.equal(encode(weight[:, j : j + 1], scale, zero, grid), whole.codes[:, j : j + 1])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
def test_a_packed_layer_computes_with_the_rounded_weight(name, grid):
    plain = layer(name)
    packed = copy.deepcopy(plain)
    pack_(packed, "0", grid)
    stored = quantize(matrix(plain[0]), grid)
    assert torch.equal(packed[0].dequantized(), stored.dequantize()) and packed[0].quantized().grid == grid
    rows, size = stored.codes.shape
    assert packed[0].weight_codes.nbytes == packed_size(rows * size, grid.bits)
    assert packed[0].weight_scale.nbytes == 2 * stored.scale.numel()
    rounded = dequantize_(copy.deepcopy(packed))
    assert type(rounded[0]) is type(plain[0])
    x = inputs(plain[0])
    with torch.no_grad():
        assert torch.allclose(packed(x), rounded(x), atol=1e-5)
    assert torch.allclose(packed(x), rounded(x), atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_what_was_evaluated_is_what_is_stored(name):
    for grid, clip in (
        (Grid(4, group_size=16), "mse"),
        (Grid(8), "max"),
        (Grid(3, symmetric=False), "max"),
        (Grid(1), "max"),
    ):
        for zeros in (0.0, 0.9) if grid.has_zero else (0.0,):
            model = layer(name, zeros)
            assert pack_sparse_(model, "0") or zeros == 0 or isinstance(model[0], nn.Conv2d)  # which is too small
            wrapper = attach(model, "0", rounding_for(model[0], grid, clip))
            wrapper.eval().on.fill_(True)
            x = inputs(model[0])
            with torch.no_grad():
                evaluated, weight = model(x), model[0].weight.clone()
                again = model(x)
            assert torch.equal(evaluated, again) and not torch.equal(weight, wrapper_input(model[0]))
            nn.utils.parametrize.remove_parametrizations(model[0], "weight", leave_parametrized=False)
            pack_(model, "0", grid, clip=clip)
            with torch.no_grad():
                assert torch.equal(model(x), evaluated)


def wrapper_input(module: nn.Module) -> torch.Tensor:
    return module.parametrizations.weight.original


def test_rounding_notices_a_new_weight():
    model = layer("linear")
    attach(model, "0", rounding_for(model[0], Grid(4))).eval().on.fill_(True)
    with torch.no_grad():
        first = model[0].weight.clone()
        wrapper_input(model[0]).mul_(2)
        assert torch.equal(model[0].weight, 2 * first)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("grid", [None, Grid(8), Grid(4, symmetric=False, group_size=7), Grid("ternary")], ids=str)
def test_a_sparse_layer_is_the_same_layer(name, grid, monkeypatch):
    model = layer(name, zeros=0.9)
    if grid is not None:
        pack_(model, "0", grid)
    dense = copy.deepcopy(model)
    monkeypatch.setattr("hfcompress.modules.sparse._OVERHEAD", -(10**6))  # these layers are tiny
    assert pack_sparse_(model, "0")
    assert not pack_sparse_(model, "0")
    wanted = dense[0].dequantized() if grid else matrix(dense[0])
    assert torch.equal(model[0].dequantized(), wanted) and model[0].nonzeros == int((wanted != 0).sum())
    x = inputs(dense[0])
    assert torch.allclose(model(x), dense(x), atol=1e-6)
    assert torch.equal(matrix(dequantize_(copy.deepcopy(model))[0]), wanted)
    again = build(json.loads(json.dumps(spec_of(model[0]))), dense[0], "x")
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model[0].state_dict().items()}
    if grid is not None:
        assert torch.equal(model[0].quantized().codes, dense[0].quantized().codes)
        return
    module, before = model[0].train(), model[0].dequantized().detach()
    (model(x) ** 2).sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    after = module.dequantized()
    assert not torch.equal(after, before) and torch.equal(after == 0, before == 0)  # zeros stay, the rest trains


@pytest.mark.parametrize(
    ("zeros", "grid", "packs"),
    [
        (0.02, None, False),
        (0.05, None, True),
        (0.10, Grid(8), False),
        (0.15, Grid(8), True),
        (0.2, Grid(4), False),
        (0.4, Grid(4), True),
        (0.3, Grid("ternary"), False),
        (0.6, Grid("ternary"), True),
    ],
)
def test_zeros_leave_the_file_when_that_saves(zeros, grid, packs, tmp_path):
    torch.manual_seed(0)
    weight = torch.ones(256, 256) * (torch.rand(256, 256) >= zeros)
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    model[0].weight.data = weight
    if grid is not None:
        pack_(model, "0", grid)
    before = model[0].dequantized() if grid else weight
    save_file(model.state_dict(), tmp_path / "dense")
    assert pack_sparse_(model, "0") is packs
    save_file(model.state_dict(), tmp_path / "sparse")
    saved = (tmp_path / "dense").stat().st_size - (tmp_path / "sparse").stat().st_size
    assert saved > 0 if packs else saved == 0
    assert torch.equal(model[0].dequantized() if packs or grid else model[0].weight, before)
    assert count_parameters(model)[1] - (256 if grid else 0) == int(weight.sum())


def test_an_empty_layer_is_stored():
    model = nn.Sequential(nn.Linear(64, 64))
    model[0].weight.data.zero_()
    assert pack_sparse_(model, "0") and model[0].weight.numel() == 1
    assert not model[0].dequantized().any()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 20, "initializer_range": 0.2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).eval()


def bert_lm() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForMaskedLM(BertConfig(**sizes, intermediate_size=48, initializer_range=0.2)).eval()


IDS = torch.tensor([[5, 9, 98, 3], [1, 2, 3, 4]])
TIED = [
    (gpt2, "AutoModelForCausalLM", "lm_head", "transformer.wte"),
    (bert_lm, "AutoModelForMaskedLM", "cls.predictions.decoder", "bert.embeddings.word_embeddings"),
]


@pytest.mark.parametrize(("make_model", "auto", "head", "table"), TIED, ids=["gpt2", "bert"])
@pytest.mark.parametrize("zeros", [0.0, 0.8])
def test_tied_weights_are_packed_once_and_stay_tied(make_model, auto, head, table, zeros, tmp_path):
    model = make_model()
    weight = model.get_submodule(table).weight
    weight.data *= torch.rand(weight.shape) >= zeros
    config = QuantizeWeightsConfig(bits=4, group_size=16, symmetric=False, clip="mse")
    compress(model, config)
    ours = [model.get_submodule(p) for p in (head, table)]
    assert isinstance(ours[0], PackedLinear) and isinstance(ours[1], PackedEmbedding)
    assert ours[0].weight_codes is ours[1].weight_codes and ours[0].sparse == bool(zeros)
    save_checkpoint(model, tmp_path / "a")
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert not any(name.startswith(f"{head}.weight_") for name in stored)
    loaded = load_model(tmp_path / "a", auto)
    theirs = [loaded.get_submodule(p) for p in (head, table)]
    tensors = [n for n, _ in theirs[1].named_parameters()]
    assert all(getattr(theirs[0], n) is getattr(theirs[1], n) for n in tensors) and "weight_zero" in tensors
    state = model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in loaded.state_dict().items()) and len(state) == len(
        loaded.state_dict()
    )
    with torch.no_grad():
        wanted = model(IDS).logits
        loaded.tie_weights()  # as resizing and some trainers do
        assert torch.allclose(loaded(IDS).logits, wanted, atol=1e-6)
        base = AutoModel.from_pretrained(tmp_path / "a").eval()
        ours = getattr(model, model.base_model_prefix)(IDS)[0]
        assert torch.allclose(base(IDS)[0], ours, atol=1e-6)
    loaded.save_pretrained(tmp_path / "b")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    loaded.dequantize()
    assert loaded.get_submodule(head).weight is loaded.get_submodule(table).weight
    with torch.no_grad():
        assert torch.allclose(loaded(IDS).logits, wanted, atol=1e-5)
    save_checkpoint(loaded, tmp_path / "c")
    with torch.no_grad():
        assert torch.allclose(load_model(tmp_path / "c", auto)(IDS).logits, wanted, atol=1e-5)


def test_tied_float_weights_without_zeros_stay_tied(tmp_path):
    model = bert_lm()
    table, head = "bert.embeddings.word_embeddings", "cls.predictions.decoder"
    weight = model.get_submodule(table).weight
    weight.data *= torch.rand(weight.shape) >= 0.5
    with torch.no_grad():
        wanted = model(IDS).logits
    assert pack_sparse_(model, table) and model.get_submodule(head).weight is model.get_submodule(table).weight
    loaded = load_model(save_checkpoint(model, tmp_path), "AutoModelForMaskedLM")
    loaded.tie_weights()
    assert loaded.get_submodule(head).weight is loaded.get_submodule(table).weight
    assert loaded.get_submodule(head).bias.shape == (99,)  # transformers would pad it to the length of the values
    with torch.no_grad():
        assert torch.allclose(loaded(IDS).logits, wanted, atol=1e-5)


def test_an_undeclared_tie_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(TargetError, match="shared with 1, undeclared"):
        pack_(model, "0")


def test_layers_that_compute_otherwise_are_refused():
    class Shifted(nn.Embedding):
        """As in Whisper."""

        def forward(self, ids):
            return self.weight[ids + 1]

    model = nn.Sequential(Shifted(4, 4), nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), nn.LayerNorm(3))
    for path in "012":
        with pytest.raises(TargetError, match=f"{path}: a .* can't be packed"):
            pack_(model, path)
    bert = make("bert")
    bert.bert.embeddings.word_embeddings = Shifted(99, 32)
    with pytest.raises(TargetError, match="Shifted can't be packed; add it to `ignore`"):
        compress(bert, MixedBitsConfig(average_bits=8, targets=["Shifted"]), calibration=[])


CONFIGS = [
    {"bits": 4, "group_size": 12, "clip": "mse", "embedding_bits": 8},
    {"bits": "ternary"},
    {"bits": "binary", "embedding_bits": 6, "ignore": ["Conv2d"]},
    {"bits": 3, "symmetric": False, "per": "tensor"},
]


@pytest.mark.parametrize("name", ["distilbert", "vit", "dinov2"])
@pytest.mark.parametrize("settings", CONFIGS, ids=str)
def test_save_and_load(name, settings, tmp_path):
    settings = {**settings, "ignore": settings.get("ignore", []) if "vit" in name else []}
    model = compress(make(name), QuantizeWeightsConfig(**settings))
    save_checkpoint(model, tmp_path)
    loaded = load_model(tmp_path, auto_class(name))
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert torch.allclose(logits(model, name), logits(loaded, name), atol=1e-6)
    half = loaded.to(torch.bfloat16)
    assert all(
        torch.equal(v, half.state_dict()[k])
        for k, v in ours.items()
        if k.rpartition("_")[2] != "weight" and not v.is_floating_point()
    )


def test_the_file_holds_exactly_those_bits(tmp_path):
    for bits, width in ((8, 8), (6, 6), (4, 4), (3, 3), ("binary", 1)):
        base = make("bert")
        model = compress(make("bert"), QuantizeWeightsConfig(bits=bits))
        save_checkpoint(model, tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        codes = {k.removesuffix("_codes"): v for k, v in stored.items() if k.endswith(".weight_codes")}
        assert len(codes) == 22
        for name, value in codes.items():
            shape = base.state_dict()[name].shape
            assert value.nbytes == math.ceil(shape.numel() * width / 8)
            assert stored[f"{name}_scale"].nbytes == 2 * shape[0]


def test_pruned_then_quantized_stays_sparse(tmp_path):
    model = make("bert")
    path = "bert.encoder.layer.0.intermediate.dense"
    module = model.get_submodule(path)
    module.weight.data *= torch.rand(module.weight.shape) >= 0.8
    zeros = matrix(module) == 0
    assert pack_sparse_(model, path)
    save_checkpoint(model, tmp_path / "float")
    model = load_model(tmp_path / "float", auto_class("bert"))
    float_size = (tmp_path / "float" / "model.safetensors").stat().st_size
    compress(model, QuantizeWeightsConfig(bits=8))
    packed = model.get_submodule(path)
    assert packed.grid == Grid(8) and packed.sparse and bool((packed.dequantized()[zeros] == 0).all())
    assert save_checkpoint(model, tmp_path / "int8").joinpath("model.safetensors").stat().st_size < float_size / 2
    loaded = load_model(tmp_path / "int8", auto_class("bert"))
    assert torch.allclose(logits(loaded, "bert"), logits(model, "bert"), atol=1e-6)
    with pytest.raises(TargetError, match="in 8 bits already"):
        compress(loaded, QuantizeWeightsConfig(bits=4))
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    stored[f"{path}.weight_mask"][:5] = 255
    save_file(stored, tmp_path / "int8" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the mask has \d+ places for \d+ values"):
        load_model(tmp_path / "int8", auto_class("bert"))


LINEAR = {"kind": "packed_linear", "in_features": 32, "out_features": 32, "bias": True}
CONV = {"kind": "packed_conv2d", "in_channels": 4, "out_channels": 6, "groups": 2, "bias": True}
CONV |= {"kernel_size": [3, 2], "stride": [2, 1], "padding": [1, 1], "dilation": [1, 1]}
HOSTILE = [
    ({**LINEAR, "in_features": 10**9}, "in_features=1000000000 is not between"),
    ({**LINEAR, "grid": {"bits": 5}}, "bits=5 is none of"),
    ({**LINEAR, "grid": {"bits": 8.0}}, r"bits=8\.0 is none of"),
    ({**LINEAR, "grid": {"bits": True}}, "bits=True is none of"),
    ({**LINEAR, "grid": {"group_size": 0}}, "group_size=0 is not"),
    ({**LINEAR, "grid": {"group_size": "8"}}, "group_size='8' is not"),
    ({**LINEAR, "grid": {"symmetric": "no"}}, "true or false"),
    ({**LINEAR, "grid": {"size": 8}}, "none that is known"),
    ({**LINEAR, "grid": [4]}, "not a mapping"),
    ({**LINEAR, "grid": None}, "neither a grid nor"),
    ({**LINEAR, "nonzeros": 10**12}, "nonzeros=1000000000000 is not between 1 and the 1024"),
    ({**LINEAR, "nonzeros": 0}, "nonzeros=0 is not"),
    ({**LINEAR, "nonzeros": None}, "nonzeros=None is not"),
    ({**LINEAR, "weights": 1}, "do not describe"),
    ({**CONV, "groups": 1}, "1 groups do not fit"),
    ({**CONV, "kernel_size": [3000, 2000]}, r"kernel_size=\[3000, 2000\] is not the config's"),
    ({**CONV, "stride": [1, 1]}, "stride"),
]


@pytest.mark.parametrize(("spec", "message"), HOSTILE, ids=lambda p: p if isinstance(p, str) else "")
def test_a_hostile_spec_is_refused(spec, message):
    with torch.device("meta"):
        old = LAYERS["conv2d"]() if "groups" in spec else nn.Linear(32, 32)
    with pytest.raises(CheckpointError, match=message):
        build(spec, old, "x")
    assert build(LINEAR, nn.Linear(32, 32), "x") is not None and build(CONV, LAYERS["conv2d"](), "x") is not None


@pytest.mark.parametrize("name", LAYERS)
def test_codes_of_another_shape_are_refused(name):
    with pytest.raises(TargetError, match="codes"):
        pack_(layer(name), "0", quantized=quantize(torch.randn(2, 3), Grid(4)))


def test_a_row_that_is_not_there_is_an_error():
    for grid in (Grid(8), Grid(3), Grid("ternary")):  # rows that start on a byte, and rows that do not
        model = layer("embedding")
        pack_(model, "0", grid)
        for ids in ([19], [-1]):
            with pytest.raises(IndexError):
                model(torch.tensor(ids))


@pytest.mark.parametrize(
    "settings",
    [{"per": "group"}, {"per": "channel", "group_size": 8}, {"bits": "ternary", "symmetric": False}, {"bits": 5}],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(settings):
    with pytest.raises(ValidationError):
        QuantizeWeightsConfig(**settings)


def test_float_embeddings_without_zeros_pass_gradients_to_looked_up_rows_only(monkeypatch):
    model = layer("embedding", zeros=0.9)
    table = matrix(model[0]).detach().clone()
    model[0].weight.data = table
    monkeypatch.setattr("hfcompress.modules.sparse._OVERHEAD", -(10**6))
    assert pack_sparse_(model, "0")
    ids = torch.tensor([2, 2, 5])
    model(ids).sum().backward()
    reference = table.clone().requires_grad_()
    F.embedding(ids, reference).sum().backward()
    assert torch.equal(model[0].weight.grad, reference.grad[table != 0])
