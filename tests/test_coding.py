"""Entropy coding: exact to the bit, near the entropy, composed with every storage kind, and safe from hostile files."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny import auto_class, logits, make
from transformers import AutoModel, AutoModelForMaskedImageModeling

from hfcompress import compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.checkpoint.memory import weight_bytes
from hfcompress.core.errors import CheckpointError, HFCompressError, TargetError
from hfcompress.methods.cluster_weights import ClusterWeightsConfig
from hfcompress.methods.entropy_coding import EntropyCodingConfig
from hfcompress.methods.magnitude import MagnitudeConfig
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig
from hfcompress.ops.coding import decode, encode
from hfcompress.ops.packing import pack

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 1000, 4097])
@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_come_back_to_the_bit(bits, count):
    digits = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)
    packed = pack(digits, bits)
    assert torch.equal(decode(encode(packed, bits), packed.shape, torch.uint8, bits), packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int16, torch.int8])
def test_numbers_of_every_dtype_come_back_to_the_bit(dtype):
    values = (torch.randn(33, 7, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    back = decode(encode(values), values.shape, dtype)
    assert back.dtype == dtype and torch.equal(back, values)


@pytest.mark.parametrize("bits", [3, 4])
def test_streams_are_near_the_entropy(bits):
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    digits = (normal + 2 ** (bits - 1)).round().clamp(0, 2**bits - 1).to(torch.uint8)
    share = digits.bincount() / len(digits)
    entropy = float(-(share[share > 0] * share[share > 0].log2()).sum())
    assert 8 * len(encode(pack(digits, bits), bits)) / len(digits) < 1.04 * entropy


def test_a_damaged_stream_is_refused():
    values = torch.randint(4, (5000,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    stream = encode(values)
    for broken in (
        stream[:-3],
        stream[3:],
        torch.cat([stream, stream]),
        stream[:0],
        torch.zeros(50, dtype=torch.uint8),
    ):
        with pytest.raises(ValueError, match=r"damaged|number of bytes"):
            decode(broken, values.shape, values.dtype)
    with pytest.raises(ValueError, match="number of bytes"):
        decode(stream, torch.Size([4999]), values.dtype)
    for i in range(0, len(stream), 7):  # any single byte: an error, or other values, but an answer
        broken = stream.clone()
        broken[i] ^= 0x5A
        try:
            decode(broken, values.shape, values.dtype)
        except ValueError:
            continue


@pytest.fixture(autouse=True)
def no_tensor_is_too_small(monkeypatch):
    monkeypatch.setattr("hfcompress.modules.at_rest.SAVING", 8)


METHODS = {
    "int8": [QuantizeWeightsConfig()],
    "3 bits": [QuantizeWeightsConfig(bits=3, group_size=8, symmetric=False)],
    "ternary": [QuantizeWeightsConfig(bits="ternary")],
    "sparse": [MagnitudeConfig(sparsity=0.9)],
    "sparse int4": [MagnitudeConfig(sparsity=0.9), QuantizeWeightsConfig(bits=4)],
    "clusters": [MagnitudeConfig(sparsity=0.7), ClusterWeightsConfig(clusters=8, rows=None)],
    "float": [],
}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", ["bert", "vit"])
def test_every_storage_kind_is_smaller_and_equal(kind, name, tmp_path):
    model = make(name)
    for method in METHODS[kind]:
        compress(model, method)
    plain = save_checkpoint(model, tmp_path / "plain") / "model.safetensors"
    before = logits(model, name)
    compress(model, EntropyCodingConfig())
    assert torch.equal(logits(model, name), before)
    file = save_checkpoint(model, tmp_path / "coded") / "model.safetensors"
    assert file.stat().st_size < plain.stat().st_size
    assert abs(weight_bytes(model) - sum(t.nbytes for t in load_file(file).values())) == 0
    loaded = load_model(file.parent, auto_class(name))
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert all(ours[k].dtype == theirs[k].dtype and torch.equal(ours[k], theirs[k]) for k in ours)
    half = load_model(file.parent, auto_class(name), dtype="bfloat16").state_dict()
    assert all(torch.equal(half[k], ours[k].to(half[k].dtype)) for k in ours)
    assert all(half[k].dtype == (torch.bfloat16 if ours[k].is_floating_point() else ours[k].dtype) for k in ours)
    base = AutoModel.from_pretrained(file.parent)  # a checkpoint with a head, without it
    assert all(torch.equal(t, ours[f"{model.base_model_prefix}.{k}"]) for k, t in base.state_dict().items()
               if not k.startswith("pooler"))  # fmt: skip


def _coded(tmp_path):
    model = compress(make("bert"), [ClusterWeightsConfig(rows=None), EntropyCodingConfig()])
    folder = save_checkpoint(model, tmp_path / "coded")
    return folder, json.loads((folder / "config.json").read_text())


def test_a_hostile_entry_is_refused(tmp_path):
    folder, config = _coded(tmp_path)
    coded = config["quantization_config"]["coded"]
    name = next(n for n in coded if n.endswith("weight_codes"))
    for entry in ({"bytes": 10**12}, {"bytes": 0}, {"bytes": "3"}, {}, [], {**coded[name], "x": 1},
                  {**coded[name], "bits": 99}, {**coded[name], "dtype": "float32"}):  # fmt: skip
        changed = {**config, "quantization_config": {**config["quantization_config"], "coded": {**coded, name: entry}}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError):
            load_model(folder, auto_class("bert"))
    changed = {
        **config,
        "quantization_config": {**config["quantization_config"], "coded": {"no.such.weight": coded[name]}},
    }
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="does not have"):
        load_model(folder, auto_class("bert"))


def test_a_hostile_stream_is_refused(tmp_path):
    folder, config = _coded(tmp_path)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "bert." + next(n for n in config["quantization_config"]["coded"] if n.endswith("weight_codes"))
    good = tensors[name].clone()
    for broken in (torch.zeros_like(good), good.flip(0)):
        save_file(tensors | {name: broken}, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="coded stream can't be read"):
            load_model(folder, auto_class("bert"))


def test_what_no_file_holds_is_initialised_beside_coded_tensors(tmp_path, monkeypatch):
    swin, vit = make("swin"), make("vit")
    for name, parameter in swin.named_parameters():
        if name.endswith("relative_position_bias_table"):
            parameter.data = (4 * parameter.data).round()  # so few values that even a small table gets smaller
    for name, model in (("swin", swin), ("vit", vit)):
        save_checkpoint(compress(model, EntropyCodingConfig()), tmp_path / name)
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **options: torch.full_like(tensor, 7, **options))
    loaded = load_model(tmp_path / "swin", auto_class("swin"))
    assert any(name.endswith("relative_position_bias_table") for name in loaded.config.quantization_config.coded)
    assert torch.equal(logits(loaded, "swin"), logits(swin, "swin"))
    masked = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "vit")
    assert not masked.vit.embeddings.mask_token.any()


def test_without_the_import_it_fails_loudly(tmp_path):
    from test_checkpoint import load_in_fresh_process

    folder = save_checkpoint(compress(make("bert"), EntropyCodingConfig()), tmp_path / "coded")
    assert load_in_fresh_process(folder, "bert", tmp_path)[0] == 0
    status, stderr, _ = load_in_fresh_process(folder, "bert", tmp_path, with_import=False)
    assert status != 0 and "pip install hfcompress; import hfcompress" in stderr


def test_adapters_of_a_coded_model_are_saved_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)  # nothing here is new
    save_checkpoint(compress(make("bert"), EntropyCodingConfig()), tmp_path / "model")
    model, again = (load_model(tmp_path / "model", auto_class("bert")) for _ in range(2))
    model.add_adapter(LoraConfig(r=8, target_modules=["query", "value"], init_lora_weights=False))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (16 * parameter.data).round()  # so few values that they would get smaller
    model.save_pretrained(tmp_path / "adapter")
    again.load_adapter(tmp_path / "adapter")
    assert torch.equal(logits(model, "bert"), logits(again, "bert"))
    assert all(t.is_floating_point() for t in load_file(tmp_path / "adapter" / "adapter_model.safetensors").values())


def test_it_is_not_done_twice_and_survives_widening(tmp_path):
    model = compress(make("bert"), [QuantizeWeightsConfig(), EntropyCodingConfig()])
    with pytest.raises(TargetError, match="stored so already"):
        compress(model, EntropyCodingConfig())
    model = load_model(save_checkpoint(model, tmp_path / "one"), auto_class("bert"))
    model.dequantize()
    again = load_model(save_checkpoint(model, tmp_path / "two"), auto_class("bert"))
    assert torch.allclose(logits(again, "bert"), logits(model, "bert"), atol=1e-6)
    assert issubclass(CheckpointError, HFCompressError)
