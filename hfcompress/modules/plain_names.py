"""The names a model's tensors have without training wrappers: those of its checkpoint."""

from __future__ import annotations

import re

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..core.foreign_internals import has_users_adapters
from .parametrizations import own_parametrizations

COMPANIONS = "training_companions"  # the child of a model that holds what trains beside it
_ORIGINAL = re.compile(r"\.parametrizations\.(\w+)\.original$")
# torch's parametrizations, and what trains beside the model
_WRAPPER = re.compile(rf"\.parametrizations\.\w+\.\d+\.|^{COMPANIONS}\.")
_ADAPTER = re.compile(r"\.lora_\w+\.")  # of peft, when a method has put it on


def clean_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict under the names the model has without training wrappers, which are left out."""
    state, names = model.state_dict(), wrapped_names(model)
    return {plain: state[name] for plain, name in names.items()}


def wrapped_names(model: nn.Module) -> dict[str, str]:
    """Return, by plain name, the name each tensor has in the model as it stands."""
    own, wrappers = _own(model), wrapper_names(model)
    return {_plain(model, name, own): name for name in model.state_dict() if name not in wrappers}


def wrapper_names(model: nn.Module) -> set[str]:
    """Return the names of the tensors that belong to what trains beside or around the model's own."""
    own, users = _own(model), _is_users(model)
    return {
        name
        for name in model.state_dict()
        if not name.startswith(own) and (_WRAPPER.search(name) or (_ADAPTER.search(name) and not users))
    }


def _own(model: nn.Module) -> tuple[str, ...]:
    """Return how the names of tensors begin that are of the model's own parametrizations."""
    return tuple(
        f"{path}.parametrizations.{name}.".lstrip(".")
        for path, module in model.named_modules(remove_duplicate=False)
        for name in own_parametrizations(module)
    )


def _plain(model: nn.Module, name: str, own: tuple[str, ...]) -> str:
    name = name if _is_users(model) else name.replace(".base_layer.", ".")
    return name if name.startswith(own) else _ORIGINAL.sub(r".\1", name)


def _is_users(model: nn.Module) -> bool:
    """Say whether adapters on this model are the user's own, who saves them alone, and not a method's."""
    return not isinstance(model, PreTrainedModel) or has_users_adapters(model)
