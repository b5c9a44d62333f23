"""How much of a model's weights a method acts on, and why the rest is left alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn
from torch.nn.utils import parametrize

from ..core.families import direct_weights, has_module
from ..core.method import Method, Phase
from ..core.shares import share
from .counting import stated_counts
from .packable import KINDS, obstacle
from .packed_parameters import PackedParameter

KEY = "weights_not_covered"  # of a method's report: the share it leaves as it is
_SHOWN = 4
_SMALL = 0.005  # of the weights; what is less is not worth a warning
_TINY = 0.001  # of the weights, in one place; less is told together


@dataclass(frozen=True)
class Weight:
    """One weight of a model, with the numbers in it."""

    path: str  # of its module
    name: str
    numbers: int


@dataclass(frozen=True)
class Left:
    """What a method leaves as it is: the share of all weights, and of what it can't act on, the shares by place."""

    share: float
    reasons: Mapping[str, float]

    def __str__(self) -> str:
        """Say which share of the weights can't be covered, and where it is; "" where that is next to nothing."""
        if sum(self.reasons.values()) < _SMALL:
            return ""
        order = sorted(self.reasons.items(), key=lambda item: -item[1])
        shown = [(place, part) for place, part in order[:_SHOWN] if part >= _TINY]
        rest = [part for _, part in order[len(shown) :]]
        places = [f"{share(part)} in {place}" for place, part in shown]
        if rest:
            places.append(f"{share(sum(rest))} in {len(rest)} {'other place' if len(rest) == 1 else 'other places'}")
        return f"{share(sum(self.reasons.values()))} of the weights are not covered: {'; '.join(places)}"


Weights = Mapping[int, Weight]  # by the identity of the parameter, so that shared ones count once


def weights_of(model: nn.Module) -> Weights:
    """Return the model's weights: all parameters but vectors, of packed layers the codes."""
    found: dict[int, Weight] = {}
    for path, module in model.named_modules():
        stated = stated_counts(module, "packed_numel")
        for name, parameter in module.named_parameters(recurse=False):
            numbers = stated.get(name, parameter.numel() if parameter.ndim > 1 else 0)
            if numbers:
                found.setdefault(id(parameter), Weight(path, name, numbers))
    return found


def acts_on_weights(method: Method) -> bool:
    """Say whether a method changes weights in place, layer by layer, so that a share of them can be named."""
    return method.info.phase in (Phase.SPARSITY, Phase.FACTOR, Phase.QUANT)


def left_alone(
    model: nn.Module, weights: Weights, targets: Iterable[str], left_out: Mapping[str, str] = MappingProxyType({})
) -> Left:
    """Return what a method leaves of `weights`, taken before it was prepared, when it acts on the modules `targets`.

    left_out: by path, why the method could not act on a layer that others like it can.
    """
    covered = {id(p) for path in targets if has_module(model, path) for p in model.get_submodule(path).parameters()}
    total = sum(weight.numbers for weight in weights.values()) or 1
    left = [weight for key, weight in weights.items() if key not in covered]
    direct = direct_weights(model)
    reasons: dict[str, float] = {}
    for weight in left:
        if has_module(model, weight.path) and (why := _why(model, weight, direct, left_out)):
            place = f"{re.sub(r'[.][0-9]+(?=[.]|$)', '.*', weight.path)}{why}"
            reasons[place] = reasons.get(place, 0.0) + weight.numbers / total
    return Left(sum(weight.numbers for weight in left) / total, reasons)


def _why(model: nn.Module, weight: Weight, direct: set[str], left_out: Mapping[str, str]) -> str:
    """Return why no method that acts on layers can act on a weight; "" for a layer like others."""
    module = model.get_submodule(weight.path)
    kind = parametrize.type_before_parametrizations(module).__name__
    if isinstance(module, PackedParameter):
        return ""
    if not isinstance(module, KINDS):
        return f".{weight.name} (a parameter of {kind})"
    why = obstacle(weight.path, module, direct) or left_out.get(weight.path, "")
    return f" ({kind}: {why})" if why else ""
