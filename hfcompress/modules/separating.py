"""Convolutions made separable: by a wrapper with the two kernels while they train, then for good."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core.errors import TargetError
from ..ops.separable import compose, separate
from .parametrizations import detach, find, trainable
from .separable import SeparableConv2d


class SeparableKernel(nn.Module):
    """Parametrization that gives the product of two kernels, which train, in place of a kernel once switched `on`."""

    on: Tensor

    def __init__(self, kernel: Tensor, multiplier: int) -> None:
        super().__init__()
        if kernel.is_meta:
            kernel = torch.zeros(kernel.shape)
        depthwise, pointwise = separate(kernel, multiplier)
        self.register_buffer("on", torch.zeros((), dtype=torch.bool))
        self.multiplier = multiplier
        self.depthwise, self.pointwise = (nn.Parameter(k.to(kernel.dtype)) for k in (depthwise, pointwise))

    def forward(self, kernel: Tensor) -> Tensor:
        """Return `kernel` as it is, or the product."""
        return compose(self.depthwise, self.pointwise, kernel.shape[1]) if self.on else kernel


def separable(module: nn.Module) -> bool:
    """Say whether a layer is a plain convolution with a kernel larger than 1 x 1 and every channel in one group."""
    if parametrize.type_before_parametrizations(module) is not nn.Conv2d:
        return False
    layer: Any = module
    return bool(layer.groups == 1 and layer.padding_mode == "zeros" and max(layer.kernel_size) > 1)


def sizes(module: Any, multiplier: int) -> tuple[int, int]:
    """Return the number of weights of a convolution, and of the pair that would stand for it."""
    height, width = module.kernel_size
    inner = module.in_channels * multiplier
    return module.out_channels * module.in_channels * height * width, inner * (height * width + module.out_channels)


@torch.no_grad()
def separate_(model: nn.Module, path: str) -> None:
    """Put the pair of convolutions that the layer's wrapper holds in the place of the layer at `path`."""
    kernel, old = find(model, path, SeparableKernel), model.get_submodule(path)
    grad = trainable(old)
    detach(model, path, SeparableKernel)
    if parametrize.is_parametrized(old):
        raise TargetError(f"{path}: another method of this stage acts on its weight; give each a stage of its own")
    module: Any = model.get_submodule(path)
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    with torch.device("meta"):
        new = SeparableConv2d(
            **{n: getattr(module, n) for n in names}, multiplier=kernel.multiplier, bias=module.bias is not None
        )
    device = module.weight.device
    new.depthwise.weight = nn.Parameter(kernel.depthwise.detach().to(device), requires_grad=grad)
    new.pointwise.weight = nn.Parameter(kernel.pointwise.detach().to(device), requires_grad=grad)
    if module.bias is not None:
        new.pointwise.bias = module.bias
    model.set_submodule(path, new.train(module.training))
