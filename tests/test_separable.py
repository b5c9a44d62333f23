"""Depthwise separable convolutions: the factorization, a whole convolutional network, and hostile checkpoints."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from hfcompress import compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import CheckpointError, TargetError
from hfcompress.methods.depthwise_separable import DepthwiseSeparableConfig
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig
from hfcompress.modules.separable import SeparableConv2d
from hfcompress.modules.spec import build, spec_of
from hfcompress.ops.separable import compose, separate

AUTO = "AutoModelForImageClassification"


def resnet() -> nn.Module:
    """Return a tiny ResNet with its convolutions of 3 x 3 and 7 x 7."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "num_labels": 3}
    return ResNetForImageClassification(ResNetConfig(**sizes, layer_type="basic")).eval()


def images(count: int = 8) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(count, 3, 32, 32, generator=generator)
    return [{"pixel_values": part} for part in pixels.split(4)]


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**images()[0]).logits


def test_the_pair_is_the_nearest_of_its_rank():
    torch.manual_seed(0)
    kernel = torch.randn(8, 4, 3, 3)
    errors = [(compose(*separate(kernel, m), 4) - kernel).square().sum() for m in (1, 3, 8)]
    spectra = torch.linalg.svdvals(kernel.transpose(0, 1).flatten(2)).square()
    for m, error in zip((1, 3, 8), errors, strict=True):
        assert error == pytest.approx(float(spectra[:, m:].sum()), rel=1e-4, abs=1e-6)


def test_what_is_separable_already_does_not_change():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, stride=2, padding=1)
    pair = SeparableConv2d(4, 8, (3, 3), (2, 2), (1, 1), multiplier=2)
    pair.pointwise.bias = layer.bias
    layer.weight.data = compose(pair.depthwise.weight, pair.pointwise.weight, 4)
    x = torch.randn(2, 4, 9, 9)
    assert torch.allclose(layer(x), pair(x), atol=1e-5)
    again = separate(layer.weight, 2)
    assert torch.allclose(compose(*again, 4), layer.weight, atol=1e-5)


def test_a_convolutional_network_is_smaller_and_loads(tmp_path):
    base = resnet()
    small = compress(resnet(), DepthwiseSeparableConfig(), calibration=images())
    pairs = [p for p, m in small.named_modules() if isinstance(m, SeparableConv2d)]
    assert len(pairs) == 9  # the stem's, and two in each of four blocks; shortcuts are 1 x 1
    folders = [save_checkpoint(m, tmp_path / name) for name, m in (("a", base), ("b", small))]
    sizes = [(folder / "model.safetensors").stat().st_size for folder in folders]
    assert sizes[1] < sizes[0] / 3
    loaded = load_model(tmp_path / "b", AUTO)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in small.state_dict().items())
    assert torch.allclose(logits(loaded), logits(small), atol=1e-6)
    packed = compress(copy.deepcopy(loaded), QuantizeWeightsConfig())  # the pairs are plain convolutions to others
    save_checkpoint(packed, tmp_path / "c")
    assert torch.allclose(logits(load_model(tmp_path / "c", AUTO)), logits(packed), atol=1e-6)


def test_fitting_on_data_leaves_less_error_than_svd():
    def error(fit: str) -> float:
        path = "resnet.encoder.stages.0.layers.0.layer.0.convolution"
        config = DepthwiseSeparableConfig(fit=fit, targets=[path])
        model, base, seen = compress(resnet(), config, calibration=images()), resnet(), []
        for m in (base, model):
            m.get_submodule(path).register_forward_hook(lambda _, __, y: seen.append(y))
            logits(m)
        return float((seen[0] - seen[1]).square().mean())

    assert error("data") < 0.8 * error("weights")


def test_what_would_not_be_smaller_is_refused():
    with pytest.raises(TargetError, match="multiplier: with 60 no convolution becomes smaller"):
        compress(resnet(), DepthwiseSeparableConfig(multiplier=60, fit="weights"))
    path = "resnet.encoder.stages.0.layers.0.layer.0.convolution"
    with pytest.raises(
        TargetError, match=r"2,304 weights would become 3,200; lower depthwise_separable.multiplier \(8\)"
    ):
        compress(resnet(), DepthwiseSeparableConfig(multiplier=8, fit="weights", targets=[path]))


@pytest.mark.parametrize(
    ("key", "value"),
    [("multiplier", 10), ("multiplier", True), ("kernel_size", [5, 5]), ("in_channels", 5), ("bias", 1)],
)
def test_a_hostile_spec_is_refused(key, value):
    old = nn.Conv2d(4, 8, 3, padding=1)
    spec = json.loads(json.dumps(spec_of(SeparableConv2d(4, 8, (3, 3), padding=(1, 1)))))
    assert isinstance(build(spec, old, "x"), SeparableConv2d)
    with pytest.raises(CheckpointError):
        build({**spec, key: value}, old, "x")
    with pytest.raises(CheckpointError):
        build(spec, nn.Conv2d(4, 8, 3, padding=1, groups=2), "x")
