"""The names a model's tensors have without training wrappers: those of its checkpoint."""

from __future__ import annotations

import re

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..core.foreign_internals import has_users_adapters

COMPANIONS = "training_companions"  # the child of a model that holds what trains beside it
_ORIGINAL = re.compile(r"\.parametrizations\.(\w+)\.original$")
# torch's parametrizations, and what trains beside the model
_WRAPPER = re.compile(rf"\.parametrizations\.\w+\.\d+\.|^{COMPANIONS}\.")
_ADAPTER = re.compile(r"\.lora_\w+\.")  # of peft, when a method has put it on


def clean_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict under the names the model has without training wrappers, which are left out."""
    state = model.state_dict()
    return {_plain(model, name): tensor for name, tensor in state.items() if not is_wrapper(model, name)}


def wrapped_names(model: nn.Module) -> dict[str, str]:
    """Return, by plain name, the name each tensor has in the model as it stands."""
    return {_plain(model, name): name for name in model.state_dict() if not is_wrapper(model, name)}


def is_wrapper(model: nn.Module, name: str) -> bool:
    """Say whether a tensor of the state dict belongs to what trains beside or around the model's own."""
    return bool(_WRAPPER.search(name) or (_ADAPTER.search(name) and not _is_users(model)))


def _plain(model: nn.Module, name: str) -> str:
    return _ORIGINAL.sub(r".\1", name if _is_users(model) else name.replace(".base_layer.", "."))


def _is_users(model: nn.Module) -> bool:
    """Say whether adapters on this model are the user's own, who saves them alone, and not a method's."""
    return not isinstance(model, PreTrainedModel) or has_users_adapters(model)
