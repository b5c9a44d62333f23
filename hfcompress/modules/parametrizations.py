"""Training wrappers are torch parametrizations; these helpers put one on, find it, and take exactly it away.

A model may have parametrizations of its own (the weight norm of wav2vec 2.0's positional convolution): those are part
of it, and nothing here touches them.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from ..core.errors import LifecycleError, TargetError
from .own_tables import has_own_lookup
from .storage import Packed

P = TypeVar("P", bound=nn.Module)
TENSOR = "weight"
_OURS = "is_training_wrapper"  # what marks those that `register` has put on


class Transposed(nn.Module):
    """Parametrization that shows `inner` a weight kept as (in, out) the way other layers keep theirs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, weight: Tensor) -> Tensor:
        """Return what `inner` makes of `weight` (in, out), in the same layout."""
        return self.inner(weight.T).T


class Scattered(nn.Module):
    """Parametrization that shows `inner` the floats of a layer that keeps them without its zeros as a whole matrix.

    What it makes of the zeros is dropped: they stay zero.
    """

    mask: Tensor

    def __init__(self, inner: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mask", mask, persistent=False)  # the layer holds it

    def forward(self, weight: Tensor) -> Tensor:
        """Return what `inner` makes of the values `weight` (nonzeros,), as flat as they are."""
        return self.inner(weight.new_zeros(self.mask.shape).masked_scatter(self.mask, weight))[self.mask]


def attach(model: nn.Module, path: str, wrapper: P, *, as_matrix: bool = False) -> P:
    """Let `wrapper` compute the weight of the layer at `path`, after any wrapper that is there already.

    as_matrix: it sees the weight with one row per output, as `matrix` does; else as the layer keeps it. Raises
    TargetError for a layer that is quantized already: its class may promise a weight where it keeps codes, and for one
    made of other layers, which have the weights.
    """
    module = model.get_submodule(path)
    refuse_composite(path, module)
    refuse_parametrized(path, module)
    device: torch.device = module.weight.device  # type: ignore[assignment]
    # On the meta device there is nothing to compute with, but what a wrapper decides is still wanted.
    wrapper.to("cpu" if device.type == "meta" else device).train(module.training)
    registered = _as_matrix(wrapper, module) if as_matrix else wrapper
    register(module, TENSOR, registered)
    return wrapper


def register(module: nn.Module, name: str, wrapper: nn.Module) -> None:
    """Let `wrapper` compute the tensor `name` of a module, after any wrapper that is there already."""
    setattr(wrapper, _OURS, True)
    parametrize.register_parametrization(module, name, wrapper, unsafe=True)


def own_parametrizations(module: nn.Module) -> list[str]:
    """Return the names of the module's tensors that the model itself computes, by parametrizations that are its own."""
    if not parametrize.is_parametrized(module):
        return []
    found: Any = module.parametrizations
    return [name for name in found if not all(hasattr(wrapper, _OURS) for wrapper in found[name])]


def refuse_parametrized(path: str, module: nn.Module) -> None:
    """Raise TargetError for a layer whose weight the model computes by a parametrization of its own."""
    if TENSOR in own_parametrizations(module):
        raise TargetError(f"{path}: the model computes its weight from others (a parametrization); add it to `ignore`")


def _as_matrix(wrapper: nn.Module, module: nn.Module) -> nn.Module:
    if isinstance(module, Packed):
        return Scattered(wrapper, module.mask())
    return Transposed(wrapper) if isinstance(module, Conv1D) else wrapper


def refuse_composite(path: str, module: nn.Module) -> None:
    """Raise TargetError for a module made of layers of its own, which have the weights."""
    parts = [name for name, _ in module.named_children() if name != "parametrizations"]
    if parts and not has_own_lookup(module):  # such a table may have a norm for what it looks up
        raise TargetError(
            f"{path}: a {type(module).__name__} is made of layers of its own ({', '.join(parts)}): do this before what "
            "splits it or puts an adapter beside it"
        )


def find(model: nn.Module, path: str, kind: type[P]) -> P:
    """Return the wrapper of class `kind` on the layer at `path`; LifecycleError when there is none."""
    for registered in _registered(model.get_submodule(path)):
        if isinstance(wrapper := _inner(registered), kind):
            return wrapper
    raise LifecycleError(f"{path} carries no {kind.__name__}: prepare() has not run on this model")


def has(model: nn.Module, path: str, kind: type[nn.Module]) -> bool:
    """Say whether the layer at `path` carries a wrapper of class `kind`."""
    return any(isinstance(_inner(wrapper), kind) for wrapper in _registered(model.get_submodule(path)))


def detach(model: nn.Module, path: str, kind: type[nn.Module]) -> None:
    """Take the wrapper of class `kind` off the layer at `path`, if it is there, and keep the others in order.

    The stored weight stays as it was trained, not as the wrapper changed it.
    """
    module = model.get_submodule(path)
    wrappers = _registered(module)
    if not any(isinstance(_inner(w), kind) for w in wrappers):
        return
    parametrize.remove_parametrizations(module, TENSOR, leave_parametrized=False)
    for wrapper in wrappers:
        if not isinstance(_inner(wrapper), kind):
            register(module, TENSOR, wrapper)


@torch.no_grad()
def bake(model: nn.Module, path: str, kind: type[nn.Module]) -> None:
    """Write what the wrapper of class `kind`, if there is one, makes of the stored weight into it; take it off."""
    for wrapper in _registered(model.get_submodule(path)):
        if isinstance(_inner(wrapper), kind):
            original = model.get_submodule(path).parametrizations[TENSOR].original  # type: ignore[index,union-attr]
            original.copy_(wrapper(original))
    detach(model, path, kind)


def wrapped(model: nn.Module) -> list[str]:
    """Return the paths of layers that still carry a training wrapper."""
    return [path for path, module in model.named_modules() if _wrapped_tensors(module)]


def trainable(module: nn.Module) -> bool:
    """Say whether the layer's stored weight trains: what a wrapper computes from it can't tell where grad is off."""
    if parametrize.is_parametrized(module, TENSOR):
        module = module.parametrizations[TENSOR]  # type: ignore[index,assignment]
        return bool(module.original.requires_grad)
    return bool(module.weight.requires_grad)


def strip_(model: nn.Module) -> None:
    """Take every training wrapper off, as after an interruption; stored weights stay as they are."""
    for path in wrapped(model):
        module = model.get_submodule(path)
        for name in _wrapped_tensors(module):
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)


def _wrapped_tensors(module: nn.Module) -> list[str]:
    if not parametrize.is_parametrized(module):
        return []
    own = own_parametrizations(module)
    return [name for name in module.parametrizations if name not in own]  # type: ignore[union-attr]


def _registered(module: nn.Module) -> list[nn.Module]:
    return list(module.parametrizations[TENSOR]) if parametrize.is_parametrized(module, TENSOR) else []  # type: ignore


def _inner(registered: nn.Module) -> nn.Module:
    return registered.inner if isinstance(registered, Transposed | Scattered) else registered
