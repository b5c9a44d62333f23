"""State of a model in the middle of a stage: the wrappers' tensors, which lie beside the checkpoint."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.errors import CheckpointError
from ..core.files import writing
from ..modules.bnb import bnb_layers
from ..modules.plain_names import wrapped_names, wrapper_names

FILE = "training_state.safetensors"


def save_training_state(model: nn.Module, folder: str | Path) -> None:
    """Write the wrappers' tensors (scores, masks) to `folder`; nothing is written when there are none."""
    # copies: wrappers of tied layers may share tensors, which a file can't
    wrappers = wrapper_names(model)
    state = {name: t.contiguous().clone() for name, t in model.state_dict().items() if name in wrappers}
    if state:
        with writing(Path(folder) / FILE) as path:
            save_file(state, path)


def load_training_state_(model: nn.Module, weights: dict[str, Tensor], folder: str | Path) -> None:
    """Load plain `weights` and the wrappers' tensors saved in `folder` into `model`, every tensor exactly once.

    Raises CheckpointError when the wrappers differ from those of the checkpoint: it came from another recipe.
    """
    names = wrapped_names(model)
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
