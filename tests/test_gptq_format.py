"""The GPTQ checkpoint format, read back by a decoder written from its description alone."""

import json

import numpy as np
import pytest
import torch
from causal import make_causal
from safetensors.numpy import load_file
from tiny import make

from hfcompress import compress
from hfcompress.core.errors import ExportError
from hfcompress.export.gptq import export_gptq, pack_layer
from hfcompress.methods.entropy_coding import EntropyCodingConfig
from hfcompress.modules.at_rest import coded_at_rest
from hfcompress.modules.packed import pack_
from hfcompress.modules.ties import tie_
from hfcompress.ops.quantization import Grid, quantize


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """Return the numbers in rows of int32 words (rows, words), the first in the lowest bits."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    numbers = words.view(np.uint32)[..., None] >> shifts & np.uint32(2**bits - 1)
    return numbers.reshape(len(words), -1).astype(np.int64)


def decode(tensors: dict[str, np.ndarray], path: str, config: dict) -> np.ndarray:
    """Return the weight (out, in) of a layer, as readers of the format compute it."""
    bits = config["bits"]
    codes = unpack(np.ascontiguousarray(tensors[f"{path}.qweight"].T), bits)  # (out, in)
    zeros = unpack(tensors[f"{path}.qzeros"], bits)  # (groups, out)
    if config["checkpoint_format"] == "gptq":
        zeros = zeros + 1
    scales, groups = tensors[f"{path}.scales"].astype(np.float32), tensors[f"{path}.g_idx"]
    return (codes - zeros.T[:, groups]) * scales.T[:, groups]


def layers(model) -> list[str]:
    """Return the linear layers of the blocks."""
    names = ("Linear", "Conv1D")
    return [p for p, m in model.named_modules() if type(m).__name__ in names and any(c.isdigit() for c in p.split("."))]


def packed(name: str, grid: Grid):
    model = make_causal(name) if name in ("gpt2", "llama") else make(name)
    paths = layers(model)
    for path in paths:
        pack_(model, path, grid)
    return model, paths


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("grid", [Grid(4, group_size=16), Grid(8, group_size=16), Grid(4), Grid(4, False, 16), Grid(2)])
def test_a_decoder_of_the_format_finds_the_weights(name, grid, tmp_path):
    model, paths = packed(name, grid)
    wanted = {path: model.get_submodule(path).dequantized().numpy() for path in paths}
    assert export_gptq(model, tmp_path / "out") == []
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert {
        "quant_method": "gptq",
        "bits": grid.bits,
        "sym": grid.symmetric,
        "desc_act": False,
    }.items() <= config.items()
    assert config["group_size"] == (grid.group_size or -1)
    for path in paths:
        parts = {k.rpartition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{path}.")}
        assert set(parts) - {"bias"} == {"qweight", "qzeros", "scales", "g_idx"}
        rows, columns = wanted[path].shape
        assert parts["qweight"].shape == (columns * grid.bits // 32, rows) and parts["qweight"].dtype == np.int32
        np.testing.assert_allclose(decode(tensors, path, config), wanted[path], rtol=1e-3, atol=1e-7)
    inside = {f"{config['block_name_to_quantize']}.0.{n}" for (n,) in config["modules_in_block_to_quantize"]}
    assert inside == {p for p in paths if p.startswith(f"{config['block_name_to_quantize']}.0.")}


def test_a_zero_point_of_zero_takes_the_second_version():
    weight = torch.rand(32, 32) + 0.1  # all above zero: the grid starts there
    quantized = quantize(weight, Grid(4, False))
    assert (quantized.zero == 0).all()
    parts = {f"a.{k}": v.numpy() for k, v in pack_layer("a", quantized, second_version=True).items()}
    got = decode(parts, "a", {"bits": 4, "checkpoint_format": "gptq_v2"})
    np.testing.assert_allclose(got, quantized.dequantize().numpy(), rtol=1e-3)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(6), r"has 6 bits, symmetric, group size None; the GPTQ format holds 2, 4 or 8 bits"),
        (Grid("ternary"), r"has ternary"),
        (Grid(4, group_size=24), r"columns also of the group size"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(grid, message, tmp_path):
    model, _ = packed("llama", grid)
    with pytest.raises(ExportError, match=message):
        export_gptq(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_layers_outside_the_blocks_or_of_two_grids_are_refused(tmp_path):
    model, paths = packed("bert", Grid(4))
    pack_(model, "bert.pooler.dense", Grid(4))
    with pytest.raises(ExportError, match=r"bert.pooler.dense is in few bits, but the GPTQ format has only layers of"):
        export_gptq(model, tmp_path / "out")
    model, paths = packed("bert", Grid(4))
    plain = make("bert")
    for path in paths[1:]:
        pack_(plain, path, Grid(4))
    pack_(plain, paths[0], Grid(8))
    with pytest.raises(ExportError, match=r"one grid for all layers"):
        export_gptq(plain, tmp_path / "out")
    with pytest.raises(ExportError, match=r"nothing to write"):
        export_gptq(make("bert"), tmp_path / "out")
    with pytest.raises(ExportError, match=r"takes images"):
        export_gptq(make("vit"), tmp_path / "out")


def test_a_packed_table_is_left_dense_with_a_message(tmp_path):
    model, _ = packed("llama", Grid(4))
    pack_(model, "model.embed_tokens", Grid(8))
    wanted = model.model.embed_tokens.dequantized().half().numpy()
    (message, *_) = export_gptq(model, tmp_path / "out")
    assert message.startswith("model.embed_tokens is stored dense")
    assert np.array_equal(load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"], wanted)


def test_a_coded_model_is_written_decoded_and_a_tied_one_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hfcompress.modules.at_rest.SAVING", 8)
    model, _ = packed("llama", Grid(4))
    torch.nn.init.ones_(model.model.embed_tokens.weight)  # gets smaller by coding
    assert export_gptq(model, tmp_path / "plain") == export_gptq(
        compress(model, EntropyCodingConfig()), tmp_path / "out"
    )
    plain, coded = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "out"))
    assert plain.keys() == coded.keys() and all(np.array_equal(plain[name], coded[name]) for name in plain)
    assert coded_at_rest(model)
    tie_(model, {"model.layers.1.input_layernorm.weight": "model.layers.0.input_layernorm.weight"})
    with pytest.raises(ExportError, match=r"layers.1.input_layernorm.weight shares the weight"):
        export_gptq(model, tmp_path / "out")
