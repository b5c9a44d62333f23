"""How many numbers a model holds, however its modules store them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def parameter_counts(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter, int]]:
    """Yield every parameter once, with its module, its name there, and how many numbers of the model it stands for.

    That is its number of elements, unless its module stores them more tightly and says so by an attribute
    `packed_numel`, a mapping from parameter name to number. Shapes suffice: the model may be on the meta device.
    """
    seen: set[int] = set()
    for module in model.modules():
        stated = stated_counts(module, "packed_numel")
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, name, parameter, stated.get(name, parameter.numel())


def stated_counts(module: nn.Module, attribute: str) -> dict[str, int]:
    """Return what a module says of its parameters by name, such as `packed_numel`; nothing if it says nothing."""
    stated = getattr(module, attribute, None)
    return stated if isinstance(stated, dict) else {}


def count(model: nn.Module) -> int:
    """Return how many numbers the model holds, shared ones once."""
    return sum(number for _, _, _, number in parameter_counts(model))
