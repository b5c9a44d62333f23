"""Columns of a weight that are about to be removed, and what the rest becomes: in force only once switched on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core.errors import LifecycleError
from .parametrizations import attach, bake, find, register, wrapped


class _Cut(nn.Module):
    """Parametrization that gives `value` in place of the tensor once switched `on`."""

    on: Tensor
    value: Tensor

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("on", torch.zeros((), dtype=torch.bool))
        self.register_buffer("value", tensor.detach().clone())

    def forward(self, tensor: Tensor) -> Tensor:
        """Return `tensor` as it is, or `value`."""
        return self.value if self.on else tensor


class BiasCut(_Cut):
    """A bias that changes with its weight."""


class ColumnCut(_Cut):
    """A weight (rows, groups * size) whose groups of columns go where `keep` is False.

    `chosen` says that calibration data decided it. tune, ridge: how the kept columns make up for the others, as in
    RemovalConfig.
    """

    keep: Tensor
    chosen: Tensor

    def __init__(self, weight: Tensor, groups: int, size: int, tune: str, ridge: float) -> None:
        super().__init__(weight)
        self.size, self.tune, self.ridge = size, tune, ridge
        self.register_buffer("keep", torch.ones(groups, dtype=torch.bool))
        self.register_buffer("chosen", torch.zeros((), dtype=torch.bool))


def attach_cut(model: nn.Module, path: str, cut: ColumnCut) -> None:
    """Put `cut` on the weight of the layer at `path` and a BiasCut on its bias, if it has one."""
    module = model.get_submodule(path)
    attach(model, path, cut, as_matrix=True)
    if module.bias is not None:
        wrapper = BiasCut(module.bias).train(module.training)  # type: ignore[arg-type]
        register(module, "bias", wrapper)


def cuts(model: nn.Module) -> Iterator[tuple[str, ColumnCut, BiasCut | None]]:
    """Yield path, weight's and bias's wrapper of every layer that has them, in the order of the modules."""
    for path in wrapped(model):
        with contextlib.suppress(LifecycleError):  # wrapped by another method
            yield path, find(model, path, ColumnCut), _bias_cut(model.get_submodule(path))


def switch(cut: ColumnCut, bias: BiasCut | None, on: bool) -> None:
    """Put what is to be into force, or take it out."""
    cut.on.fill_(on)
    if bias is not None:
        bias.on.fill_(on)


@torch.no_grad()
def bake_cut_(model: nn.Module, path: str) -> None:
    """Write what the wrappers of the layer at `path` hold into its weight and bias, and take them off."""
    module = model.get_submodule(path)
    bias = _bias_cut(module)
    switch(find(model, path, ColumnCut), bias, True)
    bake(model, path, ColumnCut)
    if bias is not None:
        module.parametrizations["bias"].original.copy_(bias.value)  # type: ignore[index,union-attr]
        parametrize.remove_parametrizations(module, "bias", leave_parametrized=False)


def _bias_cut(module: nn.Module) -> BiasCut | None:
    if not parametrize.is_parametrized(module, "bias"):
        return None
    return next((w for w in module.parametrizations["bias"] if isinstance(w, BiasCut)), None)  # type: ignore
