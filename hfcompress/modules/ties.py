"""Weights that several modules share: found, and declared to transformers for packed layers too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ..core.errors import TargetError
from ..core.foreign_internals import (
    declared_ties,
    own_declared_ties,
    pad_bias_,
    parameters_of,
    replace_bias_padding_,
    set_declared_ties_,
    stock_ties,
)
from .storage import AUXILIARY, Packed


def sharers(model: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """Return (path, module) of every module with the weight of the one at `path`, which comes first.

    Raises TargetError when the model does not declare the tie: it would not survive saving and loading.
    """
    module = model.get_submodule(path)
    weight, root = _weight(module), _root(model, path)
    found = [(path, module)]
    for other, candidate in model.named_modules(remove_duplicate=False):
        if other == path or weight is None or _weight(candidate) is not weight:
            continue
        if candidate is not module and _root(model, other) != root:
            raise TargetError(f"{path}: its weight is shared with {other}, undeclared; add both to `ignore`")
        found.append((other, candidate))
    return found


def tie_(model: nn.Module, ties: Mapping[str, str]) -> None:
    """Let each parameter named on the left be the one named on the right, in memory and in every file.

    Raises TargetError for a model that can't say so in its checkpoint.
    """
    if not hasattr(model, "all_tied_weights_keys"):
        raise TargetError(f"a {type(model).__name__} can't declare ties: only transformers' models can")
    for target, source in ties.items():
        path, _, name = target.rpartition(".")
        parameters_of(model.get_submodule(path))[name] = model.get_parameter(source)
    _declare(model, ties)


def places_of(model: nn.Module, path: str) -> list[str]:
    """Return one path of every module with the weight of the one at `path`, which comes first; raises as `sharers`."""
    first: dict[int, str] = {}
    for where, module in sharers(model, path):
        first.setdefault(id(module), where)
    return list(first.values())


def _declare(model: nn.Module, ties: Mapping[str, str]) -> None:
    """Tell transformers that the parameters named on the left are those named on the right, beside its own ties."""
    known: Any = getattr(model, "all_tied_weights_keys", None) or {}
    model.all_tied_weights_keys = {**known, **ties}  # type: ignore[assignment]
    set_declared_ties_(model, {**declared_ties(model), **ties})
    keep_biases_(model)
    declare_ties_(model)


def own_ties(model: nn.Module) -> dict[str, str]:
    """Return the ties that `tie_` was told of and that hold, {name: name of the one it is}.

    What goes with packed weights follows them, and is left out.
    """
    stock = stock_ties(model)
    declared = own_declared_ties(model)
    found = {}
    for target, source in declared.items():
        if target in stock or target.rpartition(".")[2] in AUXILIARY:
            continue
        ours, theirs = _parameter(model, target), _parameter(model, source)
        if ours is not None and ours is theirs:
            found[target] = source
    return found


def keep_biases_(model: nn.Module) -> None:
    """Let tying a weight leave the bias beside it alone, unless it is a plain output layer's.

    The model's own way is to pad a bias to as many entries as the weight has rows, and packed, coded or transposed
    weights do not have their outputs there.
    """
    replace_bias_padding_(model, _adjust_bias)


def declare_ties_(model: nn.Module) -> None:
    """Let the scales, zero points and masks of tied packed layers be tied as their weights are.

    Transformers ties by name (`all_tied_weights_keys` when loading, `_tied_weights_keys` when saving), so what goes
    with a weight is entered for as long as it is packed, and taken out again with it.
    """
    ties: dict[str, str] | None = getattr(model, "all_tied_weights_keys", None)
    if not ties:
        return
    plain = {target: source for target, source in ties.items() if target.rpartition(".")[2] not in AUXILIARY}
    parts: dict[str, str] = {}
    for target, source in plain.items():
        parts |= _part_ties(model, target, source)
    plain |= parts
    plain = {t: s for t, s in plain.items() if not (t.endswith(".bias") and _has_parts(model, t))}
    new: dict[str, str] = dict(parts)
    for target, source in plain.items():
        owners = [_owner(model, name) for name in (target, source)]
        if all(isinstance(owner, Packed) for owner in owners):
            names = [n for n in AUXILIARY if all(n in parameters_of(owner) for owner in owners)]  # type: ignore[arg-type]
            new |= {_sibling(target, name): _sibling(source, name) for name in names}
    if {**plain, **new} == ties:
        return
    model.all_tied_weights_keys = {**plain, **new}  # type: ignore[assignment]
    declared = declared_ties(model)
    declared = {
        t: s
        for t, s in declared.items()
        if t.rpartition(".")[2] not in AUXILIARY and not (t.endswith(".bias") and _has_parts(model, t))
    }
    set_declared_ties_(model, {**declared, **new})
    keep_biases_(model)


def _part_ties(model: nn.Module, target: str, source: str) -> dict[str, str]:
    """Return the ties between parts of two tied layers that are both split: all, or of a table and a linear layer one.

    A table (num, rank) is the first part of an embedding and the last of a linear layer, which has the bias too.
    """
    if target.endswith(".bias"):
        names = [f"{n.removesuffix('bias')}up.bias" if _has_parts(model, n) else n for n in (target, source)]
        return {names[0]: names[1]} if names[0] != target else {}
    owners = [_owner(model, name) for name in (target, source)]
    if not all(owner is not None and hasattr(owner, "rank") and hasattr(owner, "down") for owner in owners):
        return {}
    tables = [hasattr(owner, "num_embeddings") for owner in owners]
    names = ["down.weight" if table else "up.weight" for table in tables]
    pairs = [["down.weight"] * 2, ["up.weight"] * 2] if tables[0] == tables[1] else [names]
    stems = [name.removesuffix("weight") for name in (target, source)]
    return {stems[0] + first: stems[1] + second for first, second in pairs}


def _has_parts(model: nn.Module, name: str) -> bool:
    owner = _owner(model, f"{name.rpartition('.')[0]}.weight")
    return owner is not None and hasattr(owner, "rank") and hasattr(owner, "up")


def _adjust_bias(output: nn.Module, source: Any) -> None:
    if type(output) in (nn.Embedding, nn.Linear) and output.weight.ndim == 2:
        pad_bias_(output, source)


def _weight(module: nn.Module) -> Any:
    """Return the weight as the module holds it, without computing what a training wrapper makes of it."""
    if parametrize.is_parametrized(module, "weight"):  # a weight norm makes it of two, and is no training wrapper
        return getattr(module.parametrizations["weight"], "original", None)  # type: ignore[index]
    return parameters_of(module).get("weight")


def _root(model: nn.Module, path: str) -> str:
    """Return the name the weight at `path` is declared to be tied to, or its own."""
    name = f"{path}.weight"
    return str(getattr(model, "all_tied_weights_keys", {}).get(name, name))


def _owner(model: nn.Module, name: str) -> nn.Module | None:
    path, _, last = name.rpartition(".")
    if last != "weight":
        return None
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _parameter(model: nn.Module, name: str) -> nn.Parameter | None:
    try:
        return model.get_parameter(name)
    except AttributeError:
        return None


def _sibling(name: str, last: str) -> str:
    return f"{name.rpartition('.')[0]}.{last}"


def refuse_shared(model: nn.Module, path: str, mend: str = "add both to `ignore`") -> None:
    """Raise TargetError when another module has the weight of the one at `path`: replacing one would untie them."""
    others = [other for other, module in sharers(model, path) if module is not model.get_submodule(path)]
    if others:
        raise TargetError(f"{path}: its weight is shared with {others[0]}; {mend}")
