"""Convolutions in the engines' files: norm and activation folded in, kernels in 8 bits, products of integers."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from hfcompress.export.kernels import kernels
from hfcompress.export.onnx import export_onnx
from hfcompress.export.runtime import ENGINES, require_engine
from hfcompress.modules.packed import pack_
from hfcompress.ops.quantization import Grid

STATIC = "onnxruntime-static-int8"


def resnet():
    config = ResNetConfig(embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config)


def mobilenet():
    config = MobileNetV2Config(num_labels=3, depth_multiplier=0.25, finegrained_output=False, hidden_act="relu6")
    return MobileNetV2ForImageClassification(config)


def lively(model):
    """Give norms statistics as after training, negative scales among them, so that a norm left out is seen."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.normal_(1, 0.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
    model.config.image_size = 32
    return model.eval()


@pytest.mark.parametrize("make", [resnet, pytest.param(mobilenet, marks=pytest.mark.slow)])
def test_convolutions_are_folded_small_and_of_integers(make, tmp_path):
    torch.manual_seed(0)
    model = lively(make())
    images = torch.randn(16, 3, 32, 32)
    examples = [{"pixel_values": image[None].numpy()} for image in images]
    files = export_onnx(model, tmp_path, engines=["onnxruntime", "onnxruntime-int8", STATIC], calibration=examples)
    convolutions = sum(type(m) is torch.nn.Conv2d for m in model.modules())
    with torch.inference_mode():
        wanted = model(pixel_values=images).logits.numpy()
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    channels = sum(len(p) for p in model.parameters() if p.dim() > 1)
    for name, limit in (("onnxruntime", 1e-4), ("onnxruntime-int8", 0.05), (STATIC, 0.15)):
        ops = Counter(node.op_type for node in onnx.load(files[name]).graph.node)
        assert ops["Conv"] == convolutions and not ops["BatchNormalization"]
        got = ENGINES[name].run(files[name], 1)({"pixel_values": images.numpy()})
        assert np.abs(got - wanted).max() <= limit * np.abs(wanted).max()
        held = sum(onnx.numpy_helper.to_array(t).nbytes for t in onnx.load(files[name]).graph.initializer)
        room = 20 * channels  # of each, scale and zero point of kernel and bias, and the bias: 17 bytes
        assert held < 1.02 * weights * (4 if name == "onnxruntime" else 1) + room
    assert f"QLinearConv ({convolutions})" in kernels(files[STATIC])


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("grid", [None, Grid(8), Grid(1)])
@pytest.mark.parametrize("gamma", [1e-8, 0.0])
def test_a_channel_that_gives_its_bias_alone_keeps_it(gamma, grid, tmp_path):
    """Its weights are as nothing once the norm is folded in; steps of the bias are as fine as theirs, and int32."""
    torch.manual_seed(0)
    model = lively(resnet())
    layer = model.resnet.encoder.stages[1].layers[0].layer[1]
    layer.normalization.weight.data[:32] = gamma
    layer.normalization.bias.data[:32] = 3.0
    layer.normalization.bias.data[32] = layer.normalization.weight.data[32] = 0.0
    if grid:
        pack_(model, "resnet.encoder.stages.1.layers.0.layer.1.convolution", grid)
    images = torch.randn(8, 3, 32, 32)
    examples = [{"pixel_values": image[None].numpy()} for image in images]
    file = export_onnx(model, tmp_path, engines=[STATIC], calibration=examples)[STATIC]
    with torch.inference_mode():
        wanted = model(pixel_values=images).logits.numpy()
    got = ENGINES[STATIC].run(file, 1)({"pixel_values": images.numpy()})
    assert np.abs(got - wanted).max() < 0.15 * np.abs(wanted).max()


def test_openvino_convolves_integers(tmp_path):
    try:
        require_engine("openvino-int8")
    except Exception as missing:
        pytest.skip(str(missing))
    model = lively(resnet())
    examples = [{"pixel_values": np.random.default_rng(n).normal(size=(1, 3, 32, 32)).astype("f")} for n in range(8)]
    file = export_onnx(model, tmp_path, engines=["openvino-int8"], calibration=examples)["openvino-int8"]
    assert "Convolution i8" in kernels(file)
