"""Engines with weights alone in few bits: of any model, its own codes kept where they are few enough."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
import torch
from test_calibrated_engines import error, packed
from tiny import make
from tiny import make as tiny
from transformers import GPT2LMHeadModel

from hfcompress.export.kernels import kernels
from hfcompress.export.lower_blocks import BlockProducts
from hfcompress.export.onnx import export_onnx
from hfcompress.export.runtime import ENGINES
from hfcompress.export.weights import Dense, layer_of
from hfcompress.modules.packed import pack_
from hfcompress.ops.quantization import Grid

W8, W4 = "onnxruntime-w8", "onnxruntime-w4"


def stored(file) -> int:
    return sum(len(t.raw_data) for t in onnx.load(file).graph.initializer)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(("model", "grid"), [("bert", None), ("bert", Grid(8)), ("llama-lm", Grid(4, group_size=16))])
def test_a_model_of_any_kind_runs_with_its_weights_in_few_bits(model, grid, tmp_path):
    model = packed(model, grid) if grid else make(model)
    files = export_onnx(model, tmp_path, engines=[W8, W4])
    for name, bits, limit in ((W8, 8, 0.05), (W4, 4, 0.6)):
        assert "MatMulNBits" in kernels(files[name]) and "Integer" not in kernels(files[name])
        note = ENGINES[name].note(files[name])
        least = 4 if grid and grid.bits == 4 else bits
        assert re.match(rf"weights {least}-bit", note) and note.endswith("computed in float32")
        level = {a.i for n in onnx.load(files[name]).graph.node for a in n.attribute if a.name == "accuracy_level"}
        assert level == {1}  # activations are not rounded
        assert 0 < error(model, ENGINES[name].run(files[name], 1)) < limit
    assert stored(files[W4]) < 0.75 * stored(files[W8]) or grid == Grid(4, group_size=16)


def test_codes_of_few_bits_are_kept_and_those_of_more_are_rounded_again():
    model = tiny("bert")
    path = "bert.encoder.layer.0.output.dense"
    pack_(model, path, Grid(4, group_size=16))
    four = layer_of(path, path, model.get_submodule(path)).weight
    assert BlockProducts(4).rounded(four) is four and BlockProducts(8).rounded(four) is four
    again = packed("bert", Grid(8)).get_submodule(path)
    eight = layer_of(path, path, again).weight
    assert BlockProducts(8).rounded(eight) is eight
    found = BlockProducts(4).rounded(eight)
    assert found.bits == 4 and found.group_size == 32
    assert np.abs(found.widened() - eight.widened()).max() <= found.scale.max()


@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_pruned_stays_pruned_and_small_weights_stay_floats(bits):
    values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    mask = values > 0
    found = BlockProducts(bits).rounded(Dense(values * mask, mask))
    assert (found.widened()[~mask] == 0).all() and np.array_equal(found.mask, mask)
    np.testing.assert_allclose(found.widened(), values * mask, atol=0.51 * found.scale.max() * (1 + (bits == 4)))
    small = Dense(values[:4])
    assert BlockProducts(bits).rounded(small) is small


@pytest.mark.slow
@pytest.mark.parametrize("width", [32, 62, 63])
def test_a_tied_table_is_stored_once(width, tmp_path):
    """Where rows are no multiple of a block too: only the product wants blocks, the table is read as it lies."""
    config = make("gpt2-lm").config
    config.n_embd, config.n_head = width, 1
    model = GPT2LMHeadModel(config).eval()
    file = export_onnx(model, tmp_path, engines=[W4])[W4]
    rows = model.config.vocab_size
    tables = [t.name for t in onnx.load(file).graph.initializer if t.dims and t.dims[0] == rows and len(t.dims) == 3]
    assert len(tables) == 1 and 0 < error(model, ENGINES[W4].run(file, 1)) < 0.6
    with torch.no_grad():
        assert model.lm_head.weight is model.transformer.wte.weight
