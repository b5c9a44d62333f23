"""BatchNorm: its statistics measured again, and its folding into the convolution before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core.errors import TargetError
from .storage import Packed


@torch.no_grad()
def recalibrate_(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Set the running statistics of every BatchNorm to the mean over these batches (adaptive BN, EagleEye, Li 2020)."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
        norm.train()
    try:
        for batch in batches:
            model(**batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def norm_pairs(model: nn.Module, pixels: Tensor) -> dict[str, str]:
    """Return, by the path of each BatchNorm that reads what one convolution gives, the path of that convolution.

    Found by one forward pass in evaluation mode. A convolution that is called twice, or read by several norms, is in
    none of the pairs; whether something else reads its output, the pass can't tell.
    """
    made: dict[int, tuple[str, Tensor]] = {}  # what a convolution gave, kept alive so that no other takes its place
    calls: dict[str, int] = {}
    found: list[tuple[str, str]] = []

    def convolution(path: str) -> Any:
        def after(_: nn.Module, __: Any, output: Tensor) -> None:
            calls[path] = calls.get(path, 0) + 1
            made[id(output)] = path, output

        return after

    def norm(path: str) -> Any:
        return lambda _, args: found.append((path, made[id(args[0])][0])) if id(args[0]) in made else None

    handles = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) or (isinstance(module, Packed) and hasattr(module, "kernel_size")):
            handles.append(module.register_forward_hook(convolution(path)))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(norm(path)))
    try:
        with torch.no_grad():
            model(pixel_values=pixels)
    finally:
        for handle in handles:
            handle.remove()
    return dict(_alone(found, calls))


def _alone(found: list[tuple[str, str]], calls: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    norms, convolutions = [n for n, _ in found], [c for _, c in found]
    for norm, convolution in found:
        if norms.count(norm) == convolutions.count(convolution) == calls[convolution] == 1:
            yield norm, convolution


@torch.no_grad()
def fold_norm_(model: nn.Module, norm_path: str, path: str) -> None:
    """Fold a BatchNorm, as it is in evaluation, into the convolution before it, and leave an nn.Identity in its place.

    w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta (Jacob 2018, section 3.2).
    Raises TargetError for a convolution that is packed or that another method of the stage acts on.
    """
    norm: Any = model.get_submodule(norm_path)
    layer: Any = model.get_submodule(path)
    if isinstance(layer, Packed):
        raise TargetError(f"{path}: its weight is packed already; fold norms before")
    if parametrize.is_parametrized(layer):
        raise TargetError(f"{path}: another method of this stage acts on its weight; give each a stage of its own")
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.double()
    bias = (bias - norm.running_mean.double()) * scale + norm.bias.double()
    layer.weight.copy_(layer.weight.double() * scale.view(-1, 1, 1, 1))
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    model.set_submodule(norm_path, nn.Identity().train(norm.training))
