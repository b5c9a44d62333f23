"""Structure: where a model differs from what its config alone would build; read off a model, and put onto one.

Paths are in-memory names without the base model's prefix, so that a checkpoint with a task head also loads into the
bare base model; a path of the head starts with "/". A layer that another library holds is described by the float layer
it stands for, marked ``"inner": true``; the library and its settings stand beside the structure (inner.py).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..core.errors import CheckpointError, FamilyError
from ..core.families import base_prefix, blocks_of, family_of, has_module, size_names, width_in
from ..modules.bnb import float_twin, is_bnb
from ..modules.sized import KIND as SIZES
from ..modules.sized import resize_, sizes_of
from ..modules.spec import build, is_composite, spec_of
from ..modules.ties import declare_ties_

Modules = dict[str, dict[str, Any]]
_POOLER = "pooler"


def skeleton(model: nn.Module) -> nn.Module:
    """Return what the model's config alone would build, on the meta device (shapes, no storage)."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return type(model)(config)


def read_structure(model: nn.Module) -> Modules:
    """Return the specs of the modules that differ from the skeleton, by relative path; a state, not a history."""
    specs, base = _specs(model), skeleton(model)
    composites = [path for path, module in model.named_modules(remove_duplicate=False) if is_composite(module)]
    for path in composites:  # of their parts, too, only what differs is said
        base.set_submodule(path, build(specs[path], base.get_submodule(path), path))
    plain = _specs(base)
    return {
        _relative(model, path): spec
        for path, spec in specs.items()
        if path in composites
        or (plain.get(path) != spec and (path in plain or spec["kind"] != SIZES))  # training wrappers have sizes too
    }


def _specs(model: nn.Module) -> Modules:
    names = size_names(model)
    modules = model.named_modules(remove_duplicate=False)
    specs = ((path, _spec(module) or sizes_of(module, names)) for path, module in modules)
    return {path: spec for path, spec in specs if spec is not None}


def apply_structure_(model: nn.Module, modules: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Reshape `model`, on any device, to what `modules` says, and return the layers left to another library.

    Weights are left to be loaded. CheckpointError for a path the model lacks or a spec its config does not allow.
    """
    inner = []
    for relative, spec in modules.items():
        path = _absolute(model, relative)
        if path is None:
            continue
        try:
            old = model.get_submodule(path)
        except AttributeError as error:
            if _optional(relative):
                continue
            raise CheckpointError(f"the checkpoint describes {path!r}, which this model does not have") from error
        if spec.get("kind") == SIZES:
            resize_(old, spec, size_names(model), path)
            continue
        if _spec(old) == dict(spec):
            continue
        if spec.get("inner") is True:
            inner.append(path)
            spec = {key: value for key, value in spec.items() if key != "inner"}
        if spec_of(old) != dict(spec):
            model.set_submodule(path, build(spec, old, path))
    _fit_new_pooler_(model, modules)
    declare_ties_(model)
    return inner


def _fit_new_pooler_(model: nn.Module, modules: Mapping[str, Any]) -> None:
    """Make a pooler the checkpoint does not have, which will start at random, as wide as what it reads."""
    path = f"{base_prefix(model)}{_POOLER}.dense"
    if _relative(model, path) in modules or not has_module(model, path):
        return
    try:
        width = width_in(model.get_submodule(blocks_of(model, family_of(model))[0].query))
    except FamilyError:
        return
    old = model.get_submodule(path)
    if isinstance(old, nn.Linear) and old.in_features == old.out_features > width:
        spec = {**(spec_of(old) or {}), "in_features": width, "out_features": width}
        model.set_submodule(path, build(spec, old, path))


def _spec(module: nn.Module) -> dict[str, Any] | None:
    if not is_bnb(module):
        return spec_of(module)
    spec = spec_of(float_twin(module))
    return None if spec is None else spec | {"inner": True}


def _optional(relative: str) -> bool:
    """A pooler may be left out of a base model when it is loaded; every other module has to be there."""
    return relative.split(".")[0] == _POOLER


def _relative(model: nn.Module, path: str) -> str:
    prefix = base_prefix(model)
    if not prefix:
        return path
    return path.removeprefix(prefix) if path.startswith(prefix) else f"/{path}"


def _absolute(model: nn.Module, relative: str) -> str | None:
    """Return the path in this model; None for a path of a head this model was loaded without."""
    prefix = base_prefix(model)
    if relative.startswith("/"):
        return relative[1:] if prefix else None
    return prefix + relative
