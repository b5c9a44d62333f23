"""Weights packed inside of modules that compute in their own way, as experts do: (experts, rows, columns).

The module stays what it is. Where its code reads the parameter it finds a property, which widens the packed values.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core.errors import TargetError
from ..core.foreign_internals import parameters_of, say_initialized_
from ..ops.quantization import Clip, Grid, quantize
from .storage import Packed

PREFIX = "packed_"  # of the name of the module that holds a parameter's packed values, beside the other parameters
_EXPERT, _DIMENSIONS = "expert", 3


class PackedParameter(Packed):
    """The packed values of a parameter of any shape, the last dimension of which are the columns."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype | None = None, *, grid: Grid) -> None:
        super().__init__(shape[:-1].numel(), shape[-1], grid=grid, dtype=dtype)
        self.shape = shape

    def value(self) -> Tensor:
        """Return the parameter as it is computed with."""
        found = self.wide(self.weight.dtype).view(self.shape)
        say_initialized_(found)  # else a model's initialization would write into it
        return found


def experts_in(module: nn.Module, path: str) -> list[str]:
    """Return the names of the parameters (experts, rows, columns) of a module that holds experts; none of another."""
    if _EXPERT not in f"{path} {parametrize.type_before_parametrizations(module).__name__}".lower():
        return []
    return [name for name, p in parameters_of(module).items() if p is not None and _is_stack(p)]


@torch.no_grad()
def pack_parameters_(module: nn.Module, names: Sequence[str], grid: Grid, clip: Clip) -> list[PackedParameter]:
    """Take the wrappers off the parameters `names` of a module, and store them packed, in place."""
    for name in names:
        if parametrize.is_parametrized(module, name):
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    made = []
    for name in names:
        parameter: Any = parameters_of(module)[name]
        packed = _put(module, name, grid)
        packed.set_quantized(quantize(parameter.flatten(0, -2), grid, clip))
        made.append(packed)
    return made


def expect_parameter_(module: nn.Module, name: str, grid: Grid) -> None:
    """Make room for the packed values of the parameter `name`, which are still to be loaded."""
    _put(module, name, grid)
    if not parameters_of(module):
        say_initialized_(module)  # nothing of it is to be drawn at random


@torch.no_grad()
def widen_parameters_(model: nn.Module) -> None:
    """Give every module its packed parameters back as floats, in place."""
    for path, module in list(model.named_modules()):
        if isinstance(module, PackedParameter):
            owner, name = model.get_submodule(path.rpartition(".")[0]), _name(path)
            values = module.dequantized(module.weight.dtype).view(module.shape)
            delattr(owner, PREFIX + name)
            names = frozenset(_name(n) for n, m in owner.named_children() if isinstance(m, PackedParameter))
            plain = _plain_class(type(owner))
            owner.__class__ = _packed_class(plain, names) if names else plain
            owner.register_parameter(name, nn.Parameter(values))


def _put(module: nn.Module, name: str, grid: Grid) -> PackedParameter:
    parameter: Any = parameters_of(module).pop(name, None)
    if parameter is None or hasattr(module, PREFIX + name):
        raise TargetError(f"a {type(module).__name__} has no parameter {name} that is not packed")
    with torch.device("meta"):
        packed = PackedParameter(parameter.shape, parameter.dtype, grid=grid)
    names = {_name(n) for n, m in module.named_children() if isinstance(m, PackedParameter)} | {name}
    module.add_module(PREFIX + name, packed.train(module.training))
    module.__class__ = _packed_class(_plain_class(type(module)), frozenset(names))
    return packed


@functools.cache
def _packed_class(cls: type, names: frozenset[str]) -> Any:
    def read(name: str) -> property:
        return property(lambda module: getattr(module, PREFIX + name).value())

    properties = {name: read(name) for name in names}
    more = {"__module__": cls.__module__, "__doc__": cls.__doc__, "_plain": cls}
    return type(f"Packed{cls.__name__}", (cls,), properties | more)


def _plain_class(cls: Any) -> Any:
    return vars(cls).get("_plain", cls)


def _name(path: str) -> str:
    return path.rpartition(".")[2].removeprefix(PREFIX)


def _is_stack(parameter: Tensor) -> bool:
    return parameter.ndim == _DIMENSIONS and parameter.is_floating_point()
