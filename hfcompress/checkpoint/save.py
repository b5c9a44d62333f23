"""Writing a checkpoint folder, whole or not at all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from ..core.errors import CheckpointError
from ..core.files import share_, writing_folder
from ..core.foreign_internals import comes_with_code
from ..core.user_adapters import has_adapters, merging
from .loader import QUANT_METHOD, attach_
from .stock import fold_into_config_
from .structure import Modules, read_structure

CODE = "modeling_hfcompress"  # the module that `auto_map` names in a repository that carries the loader's code


def attach_structure_(model: nn.Module) -> Modules:
    """Record in the model's config how it now differs from a stock one, and return that; {} means not at all.

    A model wrapped for adapters is left alone: only they are saved, and the model under them is on disk already.
    """
    if not isinstance(model, PreTrainedModel) or has_adapters(model):
        return {}
    _forget_code_(model)
    fold_into_config_(model)
    modules = read_structure(model)
    attach_(model, modules)
    return modules


def save_checkpoint(model: nn.Module, folder: str | Path, processor: Any = None) -> Path:
    """Write model, config and processor to `folder`, replacing what was there only once everything is written.

    Raises WriteError when the folder cannot be written or is full, CheckpointError for a model with adapters of peft.
    """
    if has_adapters(model):
        raise CheckpointError(
            f"cannot write {folder}: this model has adapters (peft), of which a whole checkpoint says nothing. Merge "
            f"them first: {merging(model)}; or save them alone with model.save_pretrained"
        )
    attach_structure_(model)
    _forget_use_cache_(model.config)
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)  # type: ignore[operator]
        if processor is not None:
            processor.save_pretrained(temporary)
    return Path(folder)


def is_stock(folder: str | Path) -> bool:
    """Return whether the checkpoint in `folder` loads with transformers alone: its config asks for nothing of ours."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return config.get("quantization_config", {}).get("quant_method") != QUANT_METHOD


def is_whole(folder: str | Path) -> bool:
    """Return whether every JSON file in `folder` can be read, and weights of which none was cut short lie there."""
    folder = Path(folder)
    try:
        for path in folder.glob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))
        weights = list(folder.glob("*.safetensors"))
        for path in weights:
            with safe_open(path, framework="pt"):  # looks at the header and at the file's length
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return bool(weights)


def share_weights_(folder: str | Path) -> None:
    """Give the weights in `folder`, which safetensors writes for their owner alone, the mode that other files get."""
    for path in Path(folder).glob("*.safetensors"):
        share_(path)


def _forget_code_(model: PreTrainedModel) -> None:
    # A config says that the loader's code lies beside it. Of a model that was loaded by this package instead, a save
    # does not take that code along.
    config: Any = model.config
    named = [str(name).rpartition("--")[2] for name in (getattr(config, "auto_map", None) or {}).values()]
    if any(name.startswith(f"{CODE}.") for name in named) and not comes_with_code(model):
        del config.auto_map


def _forget_use_cache_(config: Any) -> None:
    # The Trainer sets this on every config; where the class has no such key, loading drops it, and saving what was
    # loaded would write another file.
    if "use_cache" in vars(config) and not hasattr(type(config)(), "use_cache"):
        del config.use_cache


@contextlib.contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` on success and vanishes on failure."""
    with writing_folder(folder) as temporary:
        yield temporary
        share_weights_(temporary)
