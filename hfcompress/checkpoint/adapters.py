"""A folder or repository that holds an adapter of peft and no whole model: recognized, refused, or merged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import cached_file, find_adapter_config_file

from ..core.errors import CheckpointError, HFCompressError, TargetError
from ..modules.adapters import keeps_codes
from ..modules.sample import close, outputs_of, sample_inputs

# of the largest output: what merging may change, for a product of two matrices is added to the weight and rounded
_ROUNDING, _HALF_ROUNDING = 1e-3, 5e-2  # in float32, and in half of its bits
_WEIGHTS = "adapter_model.safetensors"
_PROCESSORS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Adapter:
    """An adapter, and the model it is an adapter of."""

    source: str  # folder or Hub id
    base: str
    revision: str | None = None  # of the adapter
    base_revision: str | None = None
    heads: tuple[str, ...] = ()  # modules that it replaces by trained ones, by the last parts of their paths

    @property
    def processor(self) -> str:
        """Where its tokenizer or image processor is: beside the adapter, else beside its base."""
        return self.source if any(_file(self.source, name, self.revision) for name in _PROCESSORS) else self.base


def find_adapter(source: str | Path, revision: str | None = None) -> Adapter | None:
    """Return the adapter at `source`, None where no adapter lies there; CheckpointError for one that cannot be read."""
    try:
        found = find_adapter_config_file(str(source), revision=revision)
    except (OSError, ValueError):  # what is wrong with a source, loading it says
        return None
    if found is None:
        return None
    try:
        values = json.loads(Path(found).read_text(encoding="utf-8"))
        base = values["base_model_name_or_path"]
        if not isinstance(base, str) or not base:
            raise KeyError("base_model_name_or_path")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source} is an adapter of peft, and its adapter_config.json does not say of which model "
            f"(base_model_name_or_path): {error}. Merge it in a script and save the whole model"
        ) from error
    heads = tuple(str(name) for name in values.get("modules_to_save") or ())
    return Adapter(str(source), base, revision, values.get("revision"), heads)


def refusal(adapter: Adapter) -> CheckpointError:
    """Return the error that says what an adapter is and what to do about it."""
    return CheckpointError(
        f"{adapter.source} is an adapter of peft, a change to {adapter.base} and no model of its own: set "
        "`merge_adapters: true` in the recipe, or merge it in a script, peft.PeftModel.from_pretrained(base_model, "
        "adapter).merge_and_unload(), and save the whole model"
    )


def head_config(adapter: Adapter, auto_class: str) -> dict[str, Any]:
    """Return the config keywords by which a classifier's head is as large as the one that the adapter brings."""
    file = _file(adapter.source, _WEIGHTS, adapter.revision)
    if not adapter.heads or file is None or "Classification" not in auto_class:
        return {}
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 - no mapping
    rows = [shape[0] for name, shape in shapes.items() if len(shape) == 2 and is_head(adapter, name)]
    return {"num_labels": min(rows)} if rows else {}


def is_head(adapter: Adapter, name: str) -> bool:
    """Say whether a tensor belongs to a module that the adapter replaces by a trained one."""
    return any(f".{head}." in f".{name}" for head in adapter.heads)


def merge(model: nn.Module, adapter: Adapter) -> nn.Module:
    """Return the base `model` with the adapter merged into its weights; CheckpointError where that is not exact."""
    import peft

    try:
        wrapped = peft.PeftModel.from_pretrained(model, adapter.source, revision=adapter.revision)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, NotImplementedError) as error:
        raise CheckpointError(f"the adapter {adapter.source} does not fit {adapter.base}: {_first(error)}") from error
    _refuse_inexact(wrapped, adapter)
    try:
        inputs = sample_inputs(model)
    except TargetError as error:
        raise CheckpointError(f"the adapter {adapter.source} can't be proven to merge exactly: {error}") from error
    before = outputs_of(wrapped, inputs)
    try:
        merged: nn.Module = wrapped.merge_and_unload()
    except (ValueError, RuntimeError, NotImplementedError, AttributeError, HFCompressError) as error:
        raise CheckpointError(f"the adapter {adapter.source} can't be merged: {_first(error)}") from error
    whole = all(p.dtype == torch.float32 for p in merged.parameters() if p.is_floating_point())
    if not close(before, outputs_of(merged, inputs), _ROUNDING if whole else _HALF_ROUNDING):
        raise CheckpointError(
            f"the adapter {adapter.source} can't be merged exactly: the merged model answers otherwise than the model "
            "beside its adapter"
        )
    return merged.requires_grad_(True)


def _refuse_inexact(model: Any, adapter: Adapter) -> None:
    """Raise CheckpointError for an adapter that is no change of weights, and for one on weights that are codes."""
    config = model.peft_config[model.active_adapter]
    if config.is_prompt_learning or not hasattr(model, "merge_and_unload"):
        raise CheckpointError(
            f"the adapter {adapter.source} is of the kind {config.peft_type.value}, which changes no weights: it can't "
            "be merged. Compress the base model instead, and train such an adapter for what comes of it"
        )
    for path, layer in model.named_modules():
        if hasattr(layer, "get_base_layer") and keeps_codes(layer.get_base_layer()):
            raise CheckpointError(
                f"the adapter {adapter.source} lies on {path}, whose weight is held in codes: merging would round what "
                "it learnt. Merge it into the float model that the codes were made of"
            )


def _file(source: str, name: str, revision: str | None) -> str | None:
    """Return the path of a file of a folder or repository, None where there is none."""
    if Path(source).is_dir():
        return str(Path(source) / name) if (Path(source) / name).is_file() else None
    try:
        return cached_file(
            source,
            name,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return None


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
