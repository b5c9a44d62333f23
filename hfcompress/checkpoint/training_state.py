"""State of a model in the middle of a stage: plain weights for the checkpoint, wrappers' tensors beside it."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..core.errors import CheckpointError
from ..core.files import writing
from ..modules.bnb import bnb_layers
from ..modules.companion import COMPANIONS

FILE = "training_state.safetensors"
_ORIGINAL = re.compile(r"\.parametrizations\.(\w+)\.original$")
# torch's parametrizations, and what trains beside the model
_WRAPPER = re.compile(rf"\.parametrizations\.\w+\.\d+\.|^{COMPANIONS}\.")
_ADAPTER = re.compile(r"\.lora_\w+\.")  # of peft, when a method has put it on


def clean_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict under the names the model has without training wrappers, which are left out."""
    state = model.state_dict()
    return {_plain(model, name): tensor for name, tensor in state.items() if not _is_wrapper(model, name)}


def wrapped_name(model: nn.Module) -> dict[str, str]:
    """Return, by plain name, the name each tensor has in the model as it stands."""
    return {_plain(model, name): name for name in model.state_dict() if not _is_wrapper(model, name)}


def _plain(model: nn.Module, name: str) -> str:
    return _ORIGINAL.sub(r".\1", name if _is_users(model) else name.replace(".base_layer.", "."))


def _is_wrapper(model: nn.Module, name: str) -> bool:
    return bool(_WRAPPER.search(name) or (_ADAPTER.search(name) and not _is_users(model)))


def _is_users(model: nn.Module) -> bool:
    """Say whether adapters on this model are the user's own, who saves them alone, and not a method's."""
    return not isinstance(model, PreTrainedModel) or model._hf_peft_config_loaded


def save_training_state(model: nn.Module, folder: str | Path) -> None:
    """Write the wrappers' tensors (scores, masks) to `folder`; nothing is written when there are none."""
    # copies: wrappers of tied layers may share tensors, which a file can't
    state = {name: t.contiguous().clone() for name, t in model.state_dict().items() if _is_wrapper(model, name)}
    if state:
        with writing(Path(folder) / FILE) as path:
            save_file(state, path)


def load_training_state_(model: nn.Module, weights: dict[str, Tensor], folder: str | Path) -> None:
    """Load plain `weights` and the wrappers' tensors saved in `folder` into `model`, every tensor exactly once.

    Raises CheckpointError when the wrappers differ from those of the checkpoint: it came from another recipe.
    """
    names = wrapped_name(model)
    state = {names.get(name, name): tensor for name, tensor in weights.items()}
    path = Path(folder) / FILE
    try:
        state |= load_file(path) if path.exists() else {}
        frozen = tuple(
            f"{path}." for path, _ in bnb_layers(model)
        )  # codes never change, and the library reads no state
        state = {name: tensor for name, tensor in state.items() if not name.startswith(frozen)}
        missing, unexpected = model.load_state_dict(state, strict=not frozen)
        if frozen and (unexpected or [name for name in missing if not name.startswith(frozen)]):
            raise RuntimeError(f"missing: {missing[:3]}, unexpected: {unexpected[:3]}")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint {folder} does not fit this model and recipe; resume with the recipe it came from, or "
            f"start anew in another folder. {error}"
        ) from error
