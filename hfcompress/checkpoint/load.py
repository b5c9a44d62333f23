"""Loading a model by name or folder, with errors a user can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from ..core.errors import CheckpointError
from ..core.families import base_prefix
from ..core.pretrained import from_pretrained
from .adapters import find_adapter, head_config, is_head, merge, refusal
from .announcing import require_announced
from .memory import own_memory_

# What transformers raises over a config of wrong types or numbers, which its classes use without looking
_UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    StrictDataclassError,
)


def load_model(
    source: str | Path,
    auto_class: str | type[Any],
    *,
    new_head: bool = False,
    merge_adapters: bool = False,
    revision: str | None = None,
    dtype: str = "float32",
    **config: Any,
) -> nn.Module:
    """Load `source` (Hub id or folder) with a class, or the one transformers has of that name, in evaluation mode.

    `dtype`: that of the float weights, or "auto" for the one they are stored in, which takes no memory beyond the
    file's size. `config` goes to the model's config. An adapter of peft is merged into its base with `merge_adapters`.
    Raises CheckpointError when the checkpoint is missing, damaged, would leave a weight at random, or is an adapter
    that is not to be merged or cannot be; with `new_head` the task head may be new.
    """
    adapter = find_adapter(source, revision)
    if adapter is None:
        model, missing = _load(source, auto_class, revision, dtype, config)
    elif not merge_adapters:
        raise refusal(adapter)
    else:
        head = {**head_config(adapter, str(auto_class)), **config}
        model, missing = _load(adapter.base, auto_class, adapter.base_revision, dtype, head)
        missing = [name for name in missing if not is_head(adapter, name)]
        model = merge(model, adapter)
    if missing := [name for name in missing if not (new_head and _in_head(model, name))]:
        raise CheckpointError(
            f"{source} has no weights for {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}; it would "
            "run on random numbers. Name a checkpoint with a trained head, or add `finetune:` to train one."
        )
    if dtype != "float32":
        own_memory_(model)
    return model.eval()


def _load(
    source: str | Path, auto_class: str | type[Any], revision: str | None, dtype: str, config: dict[str, Any]
) -> tuple[Any, list[str]]:
    """Return the model, and the names of weights that it left at random."""
    loader = getattr(transformers, auto_class, None) if isinstance(auto_class, str) else auto_class
    if loader is None:
        raise CheckpointError(f"cannot load {source}: transformers has no class {auto_class}")
    require_folder(source)
    try:
        model, info = from_pretrained(
            loader,
            source,
            dtype=dtype_of(dtype),
            output_loading_info=True,
            revision=revision or "main",
            use_safetensors=True,  # other files of weights are pickles, which are not opened
            **config,
        )
    except SafetensorError as error:
        raise CheckpointError(f"the weights of {source} are damaged: {error}. Download or copy them again.") from error
    except _UNREADABLE as error:
        require_announced(source)
        reason = _first(error) + no_folder_either(source, error)
        raise CheckpointError(f"cannot load {source} with {loader.__name__}: {reason}") from error
    return model, sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})


def require_folder(source: str | Path) -> None:
    """Raise CheckpointError where `source` can be no Hub id, by how it is written, and is no folder."""
    name = str(source)
    local = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if local and not Path(name).is_dir():
        raise CheckpointError(f"there is no folder {name}" + (": write ~ out" if name.startswith("~") else ""))


def no_folder_either(source: str | Path, error: Exception) -> str:
    """Say, after transformers' words on what it did not find, that there is no folder of that name here."""
    return f" There is no folder {source} either." if isinstance(error, OSError) and not Path(source).is_dir() else ""


def dtype_of(name: str) -> torch.dtype | Literal["auto"]:
    """Return what transformers takes for a dtype's name, such as 'bfloat16', or "auto"."""
    return "auto" if name == "auto" else getattr(torch, name)


def _in_head(model: nn.Module, name: str) -> bool:
    prefix = base_prefix(model)
    return not name.startswith(prefix) or ".pooler." in name


def _first(error: Exception) -> str:
    """Return the first paragraph of an error of transformers, which can run to pages."""
    return str(error).strip().split("\n\n")[0][:600]
