"""Structure: where a model differs from what its config alone would build; read off a model, and put onto one.

A layer that another library holds is described by the float layer
it stands for, marked ``"inner": true``; the library and its settings stand beside the structure (inner.py).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..core.errors import CheckpointError, FamilyError
from ..core.families import base_prefix, blocks_of, family_of, has_module, label_layers, size_names, width_in
from ..modules.bnb import float_twin, is_bnb
from ..modules.merging import KIND as MERGING
from ..modules.merging import add_merging_, merging_spec
from ..modules.sized import KIND as SIZES
from ..modules.sized import resize_, sizes_of
from ..modules.spec import PARAMETER, build, build_parameter_, is_composite, spec_of
from ..modules.ties import declare_ties_, tie_
from .paths import POOLER, absolute, optional, relative

Modules = dict[str, dict[str, Any]]


def skeleton(model: nn.Module) -> nn.Module:
    """Return what the model's config alone would build, on the meta device (shapes, no storage)."""
    return skeleton_of(type(model), model.config)


def skeleton_of(cls: Any, config: Any) -> nn.Module:
    """Return the model of class `cls` that `config` alone would build, on the meta device."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return cls(config)


def read_structure(model: nn.Module) -> Modules:
    """Return the specs of the modules that differ from the skeleton, by relative path; a state, not a history."""
    specs, base = _specs(model), skeleton(model)
    composites = [path for path, module in model.named_modules(remove_duplicate=False) if is_composite(module)]
    for path in composites:  # of their parts, too, only what differs is said
        base.set_submodule(path, build(specs[path], base.get_submodule(path), path))
    plain = _specs(base)
    return {
        relative(model, path): spec
        for path, spec in specs.items()
        if path in composites
        or (plain.get(path) != spec and (path in plain or spec["kind"] != SIZES))  # training wrappers have sizes too
    }


def _specs(model: nn.Module) -> Modules:
    names = size_names(model)
    modules = model.named_modules(remove_duplicate=False)
    specs = ((path, _spec(module) or merging_spec(module) or sizes_of(module, names)) for path, module in modules)
    return {path: spec for path, spec in specs if spec is not None}


def apply_structure_(model: nn.Module, modules: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Reshape `model`, on any device, to what `modules` says, and return the layers left to another library.

    Weights are left to be loaded. CheckpointError for a path the model lacks or a spec its config does not allow.
    """
    inner, heads = [], label_layers(model)
    for stated, spec in modules.items():
        path = absolute(model, stated)
        if path is None:
            continue
        if spec.get("kind") == MERGING:  # of which the config knows nothing
            add_merging_(model, path, spec)
            continue
        if spec.get("kind") == PARAMETER:
            build_parameter_(model, path, spec)
            continue
        try:
            old = model.get_submodule(path)
        except AttributeError as error:
            if optional(model, stated):
                continue
            raise CheckpointError(f"the checkpoint describes {path!r}, which this model does not have") from error
        if spec.get("kind") == SIZES:
            resize_(old, spec, size_names(model), path)
            continue
        if spec_of(old) is None and optional(model, stated):  # another task's head, of the same name
            continue
        if path in heads:
            spec = _for_labels(spec, old, len(heads) == 1)
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


def _for_labels(spec: Mapping[str, Any], old: nn.Module, only: bool) -> Mapping[str, Any]:
    """Return the spec of a head's last layer: where there are other labels than it had, of a plain one as wide.

    Its weights then do not fit, which transformers says, or makes new ones. One of several that has as many outputs as
    inputs is not the last of its head, whose labels are as many as the model was wide.
    """
    width, count = spec.get("in_features"), getattr(old, "out_features", None)
    if spec.get("out_features") in (None, count) or (not only and spec["out_features"] == width):
        return spec
    return {**(spec_of(old) or {}), "in_features": width}


def apply_ties_(model: nn.Module, ties: Mapping[str, Any]) -> None:
    """Let the parameters named on the left be those on the right, as they will be when weights have been read.

    Raises CheckpointError for a name the model lacks, for parameters that differ, and for a tie to a tied one.
    """
    found: dict[str, str] = {}
    for left, right in ties.items():
        if not isinstance(right, str) or right in ties:
            raise CheckpointError(f"{left}: it can't be tied to {right!r}")
        target, source = absolute(model, left), absolute(model, right)
        if target is None or source is None:
            continue
        try:
            ours, theirs = model.get_parameter(target), model.get_parameter(source)
        except AttributeError as error:
            if optional(model, left) or optional(model, right):
                continue
            raise CheckpointError(f"the checkpoint ties {target!r} to {source!r}; this model lacks one") from error
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise CheckpointError(f"{target}: it can't be tied to {source}, which has another shape")
        found[target] = source
    if found:
        tie_(model, found)


def _fit_new_pooler_(model: nn.Module, modules: Mapping[str, Any]) -> None:
    """Make a pooler the checkpoint does not have, which will start at random, as wide as what it reads."""
    path = f"{base_prefix(model)}{POOLER}.dense"
    if relative(model, path) in modules or not has_module(model, path):
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
