"""Which layers can be stored packed: those that targets name, or by default all that can be."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..core.errors import TargetError
from ..core.families import direct_weights, output_layers
from ..core.targets import select
from .packed import FORMS, form_of
from .parametrizations import refuse_parametrized
from .storage import Packed
from .ties import sharers

_KINDS = tuple(cls for form in FORMS for cls in (form.plain, form.packed))
Layers = list[tuple[str, nn.Module]]


def packable(model: nn.Module, targets: Sequence[str] | None, ignore: Sequence[str], where: str) -> Layers:
    """Return the layers that `targets` names less those of `ignore`; those left without their zeros are among them.

    By default that is all but those that give the logits and those that can't be packed. Raises TargetError as `select`
    does, for a layer named that can't be packed, and for one in few bits already.
    """
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, _KINDS)]
    direct = direct_weights(model)
    if targets is None:
        keep = output_layers(model)
        layers = [(path, module) for path, module in layers if path not in keep]
        chosen = select(layers, None, ignore, f"{where}.targets")
        chosen = [(path, module) for path, module in chosen if not _obstacle_of_any(model, path, direct)]
        if layers and not chosen:
            raise TargetError(f"{where}: none of the {len(layers)} layers of this {type(model).__name__} can be packed")
    else:
        chosen = select(layers, targets, ignore, f"{where}.targets")
    for path, module in chosen:
        refuse_unpackable(path, module)
        if obstacle := _obstacle_of_any(model, path, direct):
            raise TargetError(f"{obstacle}; add {path} to `ignore`")
    return chosen


def refuse_unpackable(path: str, module: nn.Module) -> None:
    """Raise TargetError for a layer of a class without a packed form, and for one whose weight is in few bits."""
    refuse_parametrized(path, module)
    if form_of(module) is None:
        raise TargetError(f"{path}: a {type(module).__name__} can't be packed; add it to `ignore`")
    if isinstance(module, Packed) and module.grid is not None:
        raise TargetError(f"{path}: its weight is in {module.grid.bits} bits already; add it to `ignore`")


def obstacle(path: str, module: nn.Module, direct: set[str]) -> str:
    """Return why no other layer can stand in for the one at `path`; "" where one can. direct: `direct_weights`."""
    if path in direct:
        return "the model reads its weight itself"
    if form_of(module) is None:
        return f"a {type(module).__name__} computes in its own way"
    return ""


def _obstacle_of_any(model: nn.Module, path: str, direct: set[str]) -> str:
    """Return what keeps the layer at `path`, or one that its weight is tied to, from being packed."""
    found = ((where, obstacle(where, module, direct)) for where, module in sharers(model, path))
    return next((f"{where}: {why}, so it can't be packed" for where, why in found if why), "")
