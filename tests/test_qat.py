"""Quantization-aware training: learned steps, input grids, and that what was trained is what is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import MethodCase
from contract import CHECKS, Subject, check_report
from tiny import batch, calibration, logits, make
from torch import nn

from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import CheckpointError
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.export.calibrate import calibrated
from hfcompress.export.inputs import example_inputs
from hfcompress.export.onnx import OPSET, export_onnx
from hfcompress.export.opening import open_onnx
from hfcompress.export.runtime import ENGINES
from hfcompress.export.trace import trace
from hfcompress.methods.qat import QAT, QATConfig
from hfcompress.modules.packed import PackedConv2d, PackedLinear
from hfcompress.modules.spec import build, spec_of
from hfcompress.modules.steps import LearnedSteps
from hfcompress.ops.lsq import lsq
from hfcompress.ops.quantization import Grid

KINDS = {
    "ternary": {"bits": "ternary", "embedding_bits": 4, "activation_bits": 8},
    "4 bits in groups": {"bits": 4, "group_size": 8, "activation_bits": None, "start": 0.0},
    "2 bits": {"bits": 2, "activation_bits": 2},
}


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_contract(kind, tmp_path):
    subject = Subject(QAT, MethodCase(KINDS[kind]), "bert", tmp_path)
    for check in CHECKS:
        if check is not check_report:
            check(subject)


def test_lsq_rounds_and_has_the_gradients_of_the_paper():
    values = torch.tensor([0.2, 0.9, -2.0], requires_grad=True)
    step = torch.tensor([0.5], requires_grad=True)
    out = lsq(values, step, -2, 2, count=3)
    assert torch.allclose(out, torch.tensor([0.0, 1.0, -1.0]))
    out.sum().backward()
    assert values.grad.tolist() == [1.0, 1.0, 0.0]
    by_hand = (-0.4 + 0) + (-1.8 + 2) + -2  # eq. 3: -v/s + round(v/s) inside, -Q_N outside
    assert step.grad.item() == pytest.approx(by_hand / (3 * 2) ** 0.5, abs=1e-6)


def observed(name: str, **settings: object) -> tuple[nn.Module, Lifecycle]:
    """Return a model whose layers have seen inputs while training, with rounding on."""
    model = make(name)
    lifecycle = Lifecycle([QAT(QATConfig(**settings))], training=True)
    lifecycle.prepare(model)
    model.train()(**batch(name))
    model.eval()
    lifecycle.step(model, 1.0)
    return model, lifecycle


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "resnet"])
def test_what_was_trained_is_what_is_stored_inputs_included(name, tmp_path):
    model, lifecycle = observed(name, bits=4)
    before = logits(model, name)
    report = lifecycle.finalize(model)["qat"]
    after = logits(model, name)
    assert report["layers_with_quantized_inputs"] > 0
    assert torch.allclose(before, after, atol=1e-5)
    kind = PackedConv2d if name == "resnet" else PackedLinear
    assert any(isinstance(m, kind) and m.input_bits == 8 for m in model.modules())
    first = save_checkpoint(model, tmp_path / "one")
    auto = "AutoModelForImageClassification" if name in ("vit", "resnet") else "AutoModelForSequenceClassification"
    assert torch.allclose(logits(load_model(first, auto), name), after, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 2])
def test_inputs_really_are_on_a_grid(bits):
    wrapper = LearnedSteps(torch.randn(4, 8), Grid(8), input_bits=bits).train()
    x = torch.randn(64, 8)
    wrapper.round_inputs(x)
    wrapper.start(torch.randn(4, 8))
    rounded = wrapper.round_inputs(x)
    last = 2**bits - 1
    assert len(rounded.unique()) <= last + 1 and (rounded - x).abs().max() < (x.max() - x.min()) / last
    assert 0.0 in rounded  # a padding of zeros stays zero


@pytest.mark.parametrize("name", ["bert", "resnet", "convnext"])
def test_models_in_16_bits_train_on_grids(name):
    model = make(name).to(torch.bfloat16)
    lifecycle = Lifecycle([QAT(QATConfig(bits=4))], training=True)
    lifecycle.prepare(model)
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in calibration(name)[0].items()}
    model.train()(**inputs)
    lifecycle.step(model, 1.0)
    model(**inputs).loss.backward()
    steps = lifecycle.param_groups(model)[0]["params"]
    assert any(step.grad is not None and step.grad.any() for step in steps)
    with torch.no_grad():
        before = model.eval()(**inputs).logits
        lifecycle.finalize(model)
        assert before.dtype is torch.bfloat16 and torch.equal(model(**inputs).logits, before)


def test_without_inputs_seen_they_stay_float():
    model = make("bert")
    lifecycle = Lifecycle([QAT(QATConfig())], training=True)
    lifecycle.prepare(model)
    assert lifecycle.finalize(model)["qat"]["layers_with_quantized_inputs"] == 0


@pytest.mark.slow
def test_two_bit_inputs_are_the_same_in_a_checkpoint_and_in_int8(tmp_path):
    model, lifecycle = observed("bert", activation_bits=2)
    lifecycle.finalize(model)
    loaded = load_model(save_checkpoint(model, tmp_path / "one"), "AutoModelForSequenceClassification")
    assert sum(getattr(m, "input_bits", None) == 2 for m in loaded.modules()) > 10
    inputs = example_inputs(model, 4, 9)
    wanted = loaded(**inputs).logits.detach().numpy()
    file = export_onnx(loaded, tmp_path / "onnx", reduce_range=False)["onnxruntime-int8"]
    got = open_onnx(file, 1)({name: value.numpy() for name, value in inputs.items()})
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "inputs"), [(8, 8), (8, 4), (4, 8)])
def test_convolutions_compute_on_the_grids_they_were_trained_with(bits: int, inputs: int, tmp_path):
    model, lifecycle = observed("resnet", bits=bits, activation_bits=inputs)
    report = lifecycle.finalize(model)["qat"]
    convolutions = [m for m in model.modules() if isinstance(m, PackedConv2d)]
    assert report["layers"] == report["layers_with_quantized_inputs"] == len(convolutions)
    assert report["layers_with_float_inputs"] == 0 and all(m.input_bits == inputs for m in convolutions)
    pixels = {"pixel_values": batch("resnet")["pixel_values"].numpy()}
    file = export_onnx(model, tmp_path, engines=["onnxruntime"], image_size=16)["onnxruntime"]
    wanted = model(torch.from_numpy(pixels["pixel_values"])).logits.detach().numpy()
    assert np.abs(open_onnx(file, 1)(pixels) - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.slow
def test_integer_convolutions_keep_the_trained_grids_and_get_those_of_what_they_give(tmp_path):
    """The float model with grids found by calibration alone strays further: nothing in it was trained for them."""
    pixels = {"pixel_values": batch("resnet")["pixel_values"].numpy()}
    engine = "onnxruntime-static-int8"

    def strays(model, name: str) -> float:
        settings = {"image_size": 16, "calibration": [pixels], "reduce_range": False}
        file = export_onnx(model, tmp_path / name, engines=[engine], **settings)[engine]
        wanted = logits(model, "resnet").detach().numpy()
        return float(np.abs(open_onnx(file, 1)(pixels) - wanted).max() / np.abs(wanted).max())

    model, lifecycle = observed("resnet")
    lifecycle.finalize(model)
    assert strays(model, "trained") < strays(make("resnet").eval(), "calibrated") / 2
    found, own = calibrated(trace(model, 16, OPSET), [pixels]).layers, trace(model, 16, OPSET).layers
    convolutions = [path for path, layer in found.items() if layer.convolution]
    assert all(found[p].inputs == own[p].inputs and found[p].outputs for p in convolutions)
    note = ENGINES[engine].note(tmp_path / "trained" / "onnx" / "model_static_quantized.onnx")
    assert f"static ({len(convolutions)})" in note
    plain = calibrated(trace(model, 16, OPSET), []).layers
    assert not any(layer.outputs for layer in plain.values()), "without examples convolutions stay float"


def test_a_spec_with_other_input_bits_is_refused():
    model, lifecycle = observed("bert")
    lifecycle.finalize(model)
    layer = next(m for m in model.modules() if isinstance(m, PackedLinear) and m.input_bits)
    spec = spec_of(layer)
    assert spec["input_bits"] == 8
    assert build(spec, nn.Linear(layer.in_features, layer.out_features), "x").input_bits == 8
    with pytest.raises(CheckpointError, match="input_bits=7"):
        build(spec | {"input_bits": 7}, nn.Linear(layer.in_features, layer.out_features), "x")
