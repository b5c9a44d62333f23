"""Training wrappers are torch parametrizations; these helpers put one on, find it, and take exactly it away."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..core.errors import LifecycleError

P = TypeVar("P", bound=nn.Module)
TENSOR = "weight"


def attach(model: nn.Module, path: str, wrapper: P) -> P:
    """Let `wrapper` compute the weight of the layer at `path`, after any wrapper that is there already."""
    module = model.get_submodule(path)
    device: torch.device = module.weight.device  # type: ignore[assignment]
    # On the meta device there is nothing to compute with, but what a wrapper decides is still wanted.
    wrapper.to("cpu" if device.type == "meta" else device).train(module.training)
    parametrize.register_parametrization(module, TENSOR, wrapper, unsafe=True)
    return wrapper


def find(model: nn.Module, path: str, kind: type[P]) -> P:
    """Return the wrapper of class `kind` on the layer at `path`; LifecycleError when there is none."""
    for wrapper in _wrappers(model.get_submodule(path)):
        if isinstance(wrapper, kind):
            return wrapper
    raise LifecycleError(f"{path} carries no {kind.__name__}: prepare() has not run on this model")


def detach(model: nn.Module, path: str, kind: type[nn.Module]) -> None:
    """Take the wrapper of class `kind` off the layer at `path`, if it is there, and keep the others in order.

    The stored weight stays as it was trained, not as the wrapper changed it.
    """
    module = model.get_submodule(path)
    wrappers = _wrappers(module)
    if not any(isinstance(w, kind) for w in wrappers):
        return
    parametrize.remove_parametrizations(module, TENSOR, leave_parametrized=False)
    for wrapper in wrappers:
        if not isinstance(wrapper, kind):
            parametrize.register_parametrization(module, TENSOR, wrapper, unsafe=True)


def wrapped(model: nn.Module) -> list[str]:
    """Return the paths of layers that still carry a training wrapper."""
    return [path for path, module in model.named_modules() if parametrize.is_parametrized(module)]


def strip_(model: nn.Module) -> None:
    """Take every training wrapper off, as after an interruption; stored weights stay as they are."""
    for path in wrapped(model):
        parametrize.remove_parametrizations(model.get_submodule(path), TENSOR, leave_parametrized=False)


def _wrappers(module: nn.Module) -> list[nn.Module]:
    return list(module.parametrizations[TENSOR]) if parametrize.is_parametrized(module, TENSOR) else []  # type: ignore
