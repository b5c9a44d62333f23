"""What passes as the same model when activations are rounded, and what does not."""

import copy
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from tiny import make
from torch import nn

from hfcompress import SmoothQuantConfig, compress
from hfcompress.core.errors import ExportError
from hfcompress.export import agreement
from hfcompress.export.agreement import check
from hfcompress.export.inputs import example_inputs
from hfcompress.export.onnx import OPSET
from hfcompress.export.trace import trace


@lru_cache
def traced_of(name: str):
    model = make(name)
    image = model.main_input_name == "pixel_values"
    calibration = [example_inputs(model, 4, None if image else 9, seed=n) for n in range(4)]
    return trace(compress(model, SmoothQuantConfig(), calibration=calibration), None, OPSET)


@pytest.fixture(
    params=[
        "bert",
        pytest.param("vit", marks=pytest.mark.slow),
    ]
)
def traced(request):
    return traced_of(request.param)


def stands(plain: nn.Module) -> list[nn.Module]:
    return [module for module in plain.modules() if getattr(module, "inputs", None)]


def otherwise(plain: nn.Module, change):
    other = copy.deepcopy(plain)
    change(other)
    return agreement._run_of(other)


def noisy(plain: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    for weight in plain.parameters():
        weight.mul_(1 + 3e-7 * torch.randn(weight.shape, generator=generator))


def unrounded(plain: nn.Module) -> None:
    for module in stands(plain):
        module.inputs = None


def wider(plain: nn.Module) -> None:
    stand = stands(plain)[0]
    stand.inputs = replace(stand.inputs, step=1.05 * stand.inputs.step)


def shifted(plain: nn.Module) -> None:
    plain.model.classifier.inner.bias.data.add_(0.1)


def test_sums_in_another_order_pass(traced):
    check(traced, "openvino", otherwise(traced.plain, noisy))


@pytest.mark.parametrize(
    "change", [pytest.param(unrounded, marks=pytest.mark.slow), pytest.param(wider, marks=pytest.mark.slow), shifted]
)
def test_another_grid_or_weight_is_refused(traced, change):
    with pytest.raises(ExportError, match="the openvino export disagrees with the model: error"):
        check(traced, "openvino", otherwise(traced.plain, change))


@pytest.mark.slow
def test_a_model_that_flips_a_lot_is_held_against_its_own_flips(traced, monkeypatch):
    """Noise that would be refused by the bound of float passes where the model itself moves as much under it."""
    loud = otherwise(traced.plain, lambda plain: [w.mul_(1 + 3e-3 * torch.randn(w.shape)) for w in plain.parameters()])
    with pytest.raises(ExportError):
        check(traced, "openvino", loud)
    monkeypatch.setattr(agreement, "NOISE", 3e-3)
    check(traced, "openvino", loud)
