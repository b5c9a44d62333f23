"""peft's merge, refused where it would not be exact: into a weight that this package lets several layers share.

What one layer learnt would change the others, and what each learnt would be added to the one weight in turn. peft knows
ties of embeddings only. Its check before a merge is a private method: what is known of it stands here alone.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

from torch import nn

from ..core.errors import TargetError

_MODULE, _CLASS, _CHECK = "peft.tuners.tuners_utils", "BaseTuner", "_check_merge_allowed"
_BASE = "base_layer"  # what peft calls the layer under an adapter
_ASKS = "_asks_hfcompress"


def refuse_inexact_merge(model: nn.Module) -> None:
    """Raise TargetError when an adapter lies on a weight that the model shares with another layer by a tie of ours."""
    for target, source in _ties(model).items():
        ours, theirs = _holder(model, target), _holder(model, source)
        if ours is None or theirs is None or ours[1] is not theirs[1]:
            continue
        if adapted := [name for name, holder in ((target, ours), (source, theirs)) if holder[0]]:
            other = source if adapted[0] == target else target
            raise TargetError(
                f"adapters can't be merged exactly: {adapted[0]} is also {other}, which would take in what the adapter "
                "of the first learnt. Keep the adapters beside the model (save_pretrained saves them), or train them "
                "under HFCompressTrainer with LoRAConfig, where layers that share a weight share their adapter"
            )


def guard_merges() -> None:
    """Let peft ask, before it merges, whether the ties of the model allow it; at once, or as soon as it is imported."""
    if _MODULE in sys.modules:
        _guard_(sys.modules[_MODULE])
    elif not any(isinstance(finder, _AtImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AtImport())


class _AtImport(MetaPathFinder):
    """Guards peft's module of tuners when something imports it; importing peft for that takes seconds."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def guarded(module: ModuleType) -> None:
                execute(module)
                _guard_(module)

            spec.loader.exec_module = guarded  # type: ignore[method-assign]
        return spec


def _guard_(tuners: ModuleType) -> None:
    cls = getattr(tuners, _CLASS)
    check = getattr(cls, _CHECK)
    if hasattr(check, _ASKS):
        return

    def asked(self: Any) -> None:
        check(self)
        refuse_inexact_merge(self.model)

    setattr(asked, _ASKS, True)
    setattr(cls, _CHECK, asked)


def _ties(model: nn.Module) -> dict[str, str]:
    """Return the ties declared beside those of the model's class, {name: name of the one it is}."""
    stock = getattr(type(model), "_tied_weights_keys", None) or {}
    declared: dict[str, str] = vars(model).get("_tied_weights_keys") or {}
    return {target: source for target, source in declared.items() if target not in stock}


def _holder(model: nn.Module, name: str) -> tuple[bool, nn.Parameter] | None:
    """Return whether an adapter lies on the layer that holds this parameter, and the parameter; None where none is."""
    path, _, last = name.rpartition(".")
    for adapted, where in ((True, f"{path}.{_BASE}.{last}"), (False, name)):
        try:
            return adapted, model.get_parameter(where)
        except AttributeError:
            continue
    return None
