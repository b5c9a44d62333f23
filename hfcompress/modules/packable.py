"""Which layers can be stored packed: those that targets name, or by default all that can be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import nn

from ..core.errors import TargetError
from ..core.families import direct_weights, output_layers
from ..core.foreign_internals import parameters_of
from ..core.targets import select
from .packed import FORMS, form_of
from .packed_parameters import experts_in
from .parametrizations import TENSOR, own_parametrizations, refuse_parametrized
from .storage import Packed
from .ties import sharers

KINDS = tuple(cls for form in FORMS for cls in (form.plain, form.packed))
Layers = list[tuple[str, nn.Module]]


def packable(
    model: nn.Module,
    targets: Sequence[str] | None,
    ignore: Sequence[str],
    where: str,
    more: Collection[str] = (),
) -> Layers:
    """Return the layers that `targets` names less those of `ignore`; those left without their zeros are among them.

    By default that is all but those that give the logits and those that can't be packed. more: paths of other modules
    that the method can act on. Raises TargetError as `select` does, for a layer named that can't be packed, and for one
    in few bits already.
    """
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, KINDS) or path in more]
    direct = direct_weights(model)
    if targets is None:
        keep = output_layers(model)
        layers = [(path, module) for path, module in layers if path not in keep]
        chosen = select(layers, None, ignore, f"{where}.targets")
        chosen = [each for each in chosen if each[0] in more or not _obstacle_of_any(model, each[0], direct)]
        if layers and not chosen:
            raise TargetError(f"{where}: none of the {len(layers)} layers of this {type(model).__name__} can be packed")
    else:
        chosen = select(layers, targets, ignore, f"{where}.targets")
    for path, module in chosen:
        if path in more:
            continue
        refuse_unpackable(path, module)
        if obstacle := _obstacle_of_any(model, path, direct):
            raise TargetError(f"{obstacle}; add {path} to `ignore`")
    return chosen


def unshared(model: nn.Module, layers: Layers, *, named: bool) -> tuple[list[str], dict[str, str]]:
    """Return the paths of the layers whose weight is theirs alone, and those left out for sharing one, with the reason.

    Raises TargetError for a shared one among layers that the user `named`.
    """
    paths, left = [], {}
    for path, _ in layers:
        if len(group := sharers(model, path)) == 1:
            paths.append(path)
        elif named:
            raise TargetError(f"{path}: its weight is shared with {group[1][0]}; add both to `ignore`")
        else:
            others = [where for where, _ in group if where != path]
            left[path] = f"its weight is shared with {others[0]}"
            left = dict.fromkeys(others, f"its weight is shared with {path}") | left
    return paths, left


def held_weights(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the parameters that can be packed inside their modules, by path of those.

    They are the weights of experts, and those of layers that compute in a way of their own and share them with none.
    """
    direct = direct_weights(model)
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        if names := experts_in(module, path):
            found[path] = names
        elif isinstance(module, nn.Linear | nn.Embedding) and form_of(module) is None:
            floats = (own := parameters_of(module).get(TENSOR)) is not None and own.is_floating_point()
            if floats and not unseen(path, module, direct) and _is_alone(model, path):
                found[path] = [TENSOR]
    return found


def refuse_unpackable(path: str, module: nn.Module) -> None:
    """Raise TargetError for a layer of a class without a packed form, and for one whose weight is in few bits."""
    refuse_parametrized(path, module)
    if form_of(module) is None:
        raise TargetError(f"{path}: a {type(module).__name__} can't be packed; add it to `ignore`")
    if isinstance(module, Packed) and module.grid is not None:
        raise TargetError(f"{path}: its weight is in {module.grid.bits} bits already; add it to `ignore`")


Obstacle = Callable[[str, nn.Module, set[str]], str]  # (path, module, `direct_weights`) -> why not; "" where it can


def obstacle(path: str, module: nn.Module, direct: set[str]) -> str:
    """Return why no other layer can stand in for the one at `path`; "" where one can."""
    return unseen(path, module, direct) or ("" if form_of(module) else "computed in a way of its own")


def unseen(path: str, module: nn.Module, direct: set[str]) -> str:
    """Return why what is put beside or around the layer at `path` would not be called, or its inputs not be seen."""
    return "the model reads its weight itself" if path in direct else computed(path, module, direct)


def computed(path: str, module: nn.Module, direct: set[str]) -> str:
    """Return why no training wrapper can be put on the weight of the layer at `path`."""
    return "its weight is computed by a parametrization" if TENSOR in own_parametrizations(module) else ""


def refuse_obstacles(model: nn.Module, layers: Layers, why_not: Obstacle) -> None:
    """Raise TargetError for the first of `layers` that has an obstacle."""
    direct = direct_weights(model)
    for path, module in layers:
        if why := why_not(path, module, direct):
            raise TargetError(f"{path} (a {type(module).__name__}): {why}; add it to `ignore`")


def without_obstacles(model: nn.Module, layers: Layers, why_not: Obstacle) -> Layers:
    """Return those of `layers` that have none."""
    direct = direct_weights(model)
    return [(path, module) for path, module in layers if not why_not(path, module, direct)]


def _is_alone(model: nn.Module, path: str) -> bool:
    weight = parameters_of(model.get_submodule(path))[TENSOR]
    return sum(parameters_of(module).get(TENSOR) is weight for module in model.modules()) == 1


def _obstacle_of_any(model: nn.Module, path: str, direct: set[str]) -> str:
    """Return what keeps the layer at `path`, or one that its weight is tied to, from being packed."""
    try:
        group = sharers(model, path)
    except TargetError as error:
        return str(error)
    for where, module in group:
        if why := obstacle(where, module, direct):
            return f"{where}: a {type(module).__name__} can't be packed here: {why}"
    return ""
