"""peft's merge, refused where it would not be exact: into a weight that this package lets several layers share.

What one layer learnt would change the others, and what each learnt would be added to the one weight in turn. peft knows
ties of embeddings only.
"""

from __future__ import annotations

from types import ModuleType

from torch import nn

from ..core.after_import import after_import
from ..core.errors import TargetError
from ..core.foreign_internals import TUNERS, ask_before_merges_, own_declared_ties, stock_ties

_BASE = "base_layer"  # what peft calls the layer under an adapter


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
    after_import(TUNERS, _guard_)


def _guard_(tuners: ModuleType) -> None:
    ask_before_merges_(tuners, refuse_inexact_merge)


def _ties(model: nn.Module) -> dict[str, str]:
    """Return the ties declared beside those of the model's class, {name: name of the one it is}."""
    return {target: source for target, source in own_declared_ties(model).items() if target not in stock_ties(model)}


def _holder(model: nn.Module, name: str) -> tuple[bool, nn.Parameter] | None:
    """Return whether an adapter lies on the layer that holds this parameter, and the parameter; None where none is."""
    path, _, last = name.rpartition(".")
    for adapted, where in ((True, f"{path}.{_BASE}.{last}"), (False, name)):
        try:
            return adapted, model.get_parameter(where)
        except AttributeError:
            continue
    return None
