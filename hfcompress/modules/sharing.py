"""Layers that share their parameters with others: while training by a wrapper, afterwards by a tie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core.errors import TargetError
from ..core.families import Block, Family, blocks_of, stacks_of
from ..ops.lowrank import decompose
from .factorized import Factorized, FactorizedLinear
from .matrix import stored
from .parametrizations import register
from .storage import Packed
from .ties import tie_

PARTS = ("all", "attention", "ffn")


class SharedTensor(nn.Module):
    """Parametrization that shows the tensor `name` of the layer `source` instead of a layer's own, once `on`.

    The gradient of every use then accumulates in the one tensor; the layer's own keeps its value and gets none.
    """

    on: Tensor

    def __init__(self, source: nn.Module, name: str) -> None:
        super().__init__()
        self._source = (source, name)  # in a tuple, so that it does not become a part of this module
        self.register_buffer("on", torch.zeros((), dtype=torch.bool))

    def forward(self, own: Tensor) -> Tensor:
        """Return the shared tensor when switched on, else the layer's own."""
        source, name = self._source
        return getattr(source, name) if self.on else own


def groups_of(model: nn.Module, family: Family, size: int | None) -> list[list[Block]]:
    """Return blocks that are to share, `size` neighbours of a stack each (None: all), leaving out groups of one."""
    blocks, groups = iter(blocks_of(model, family)), []
    for stack in stacks_of(model, family):
        found = [next(blocks) for _ in range(stack.depth(model))]
        step = size or len(found)
        groups += [found[i : i + step] for i in range(0, len(found), step)]
    return [group for group in groups if len(group) > 1]


def chosen_groups(model: nn.Module, family: Family, wanted: Sequence[Sequence[int]]) -> list[list[Block]]:
    """Return blocks that are to share, by their numbers from 0; TargetError for one that is not there or elsewhere."""
    blocks = blocks_of(model, family)
    stacks = [stack.path for stack in stacks_of(model, family) for _ in range(stack.depth(model))]
    for group in wanted:
        if max(group) >= len(blocks):
            raise TargetError(f"there is no block {max(group)}: this model has {len(blocks)}, counted from 0")
        odd = next((i for i in group if stacks[i] != stacks[group[0]]), None)
        if odd is not None:
            places = f"{blocks[group[0]].path} and {blocks[odd].path}"
            raise TargetError(f"blocks {group[0]} and {odd} are of two stacks, which do not share: {places}")
    return [[blocks[i] for i in group] for group in wanted]


def shared_names(model: nn.Module, group: Sequence[Block], part: str) -> list[list[str]]:
    """Return, for each parameter of this part of the blocks, its name in every block of the group.

    Raises TargetError when blocks differ in it, or it is shared already.
    """
    inside = [_parameters(model, block, part) for block in group]
    found = []
    for short, name in inside[0].items():
        names = [names[short] for names in inside if short in names]
        if len(names) < len(group):
            continue  # such as position biases that only the first block has
        shapes = {tuple(model.get_parameter(n).shape) for n in names}
        kinds = {type(model.get_submodule(n.rpartition(".")[0])) for n in names}
        if len(shapes) > 1 or len(kinds) > 1:
            raise TargetError(
                f"{name}: it has other sizes or another kind in {_odd(model, group, names)}, so they can't share it: "
                "share layers before pruning, quantizing or splitting them one by one, or choose other groups"
            )
        owner = _owner(model, name)[0]
        if isinstance(owner, Factorized):
            continue  # an empty weight; what it stands for are the factors, which are shared one by one
        if isinstance(owner, Packed):
            raise TargetError(f"{name}: it is packed in few bits already: share layers before that")
        if not model.get_parameter(name).is_floating_point() or model.get_parameter(name).numel() == 0:
            raise TargetError(f"{name}: a {type(owner).__name__} keeps its weight elsewhere: share layers before that")
        if len({id(model.get_parameter(n)) for n in names}) < len(names):
            raise TargetError(f"{name}: these blocks share it already")
        found.append(names)
    return found


def attach_shared(model: nn.Module, names: Sequence[Sequence[str]]) -> None:
    """Let the others of each list of parameters be able to show the first one."""
    for first, *others in names:
        owner, last = _owner(model, first)
        for other in others:
            module, name = _owner(model, other)
            register(module, name, SharedTensor(owner, last))


@torch.no_grad()
def start_sharing_(model: nn.Module, names: Sequence[Sequence[str]], weights: Sequence[Sequence[float]]) -> None:
    """Switch sharing on; each first parameter becomes the mean of all, weighted by the blocks' `weights`.

    Of layers in two factors it is the mean of their products that is kept, at the same rank.
    """
    if any(_wrappers(model, others[0])[0].on for _, *others in names):
        return
    factors = _mean_factors(model, names, weights)
    for (first, *others), shares in zip(names, weights, strict=True):
        owner, last = _owner(model, first)
        value = shares[0] * getattr(owner, last)
        for other, share in zip(others, shares[1:], strict=True):
            wrappers = _wrappers(model, other)
            value = value + share * wrappers.original
            wrappers[0].on.fill_(True)
        getattr(owner, last).copy_(factors.get(first, value))


def finish_sharing_(model: nn.Module, names: Sequence[Sequence[str]]) -> None:
    """Take the wrappers off, and tie each list of parameters into one."""
    ties: dict[str, str] = {}
    for first, *others in names:
        for other in others:
            module, name = _owner(model, other)
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            ties[other] = first
    tie_(model, ties)


def _parameters(model: nn.Module, block: Block, part: str) -> dict[str, str]:
    """Return the parameters of a part of a block, full names by names inside the block."""
    paths = {
        "all": (block.path,),
        "attention": tuple(dict.fromkeys((block.query, block.key, block.value, block.output, *block.more))),
        "ffn": (*block.up, block.down),
    }[part]
    names = [f"{path}.{name}" for path in paths for name, _ in model.get_submodule(path).named_parameters()]
    return {name.removeprefix(f"{block.path}."): name for name in names}


def _wrappers(model: nn.Module, name: str) -> Any:
    module, last = _owner(model, name)
    return module.parametrizations[last]  # type: ignore[index]


def _mean_factors(
    model: nn.Module, names: Sequence[Sequence[str]], weights: Sequence[Sequence[float]]
) -> dict[str, Tensor]:
    """Return the factors, by name, that are nearest to the mean product of layers, where more than one counts."""
    found: dict[str, Tensor] = {}
    for group, shares in zip(names, weights, strict=True):
        paths = [name.removesuffix(".down.weight") for name in group]
        if paths[0] == group[0] or sum(map(bool, shares)) == 1:
            continue
        layers: list[Any] = [model.get_submodule(path) for path in paths]
        if isinstance(layers[0], FactorizedLinear):
            products = [
                share * (stored(layer.up) @ stored(layer.down)) for share, layer in zip(shares, layers, strict=True)
            ]
            mean = torch.stack(products).sum(0)
            down, up = decompose(mean).cut(layers[0].rank)
            found |= {group[0]: down, f"{paths[0]}.up.weight": up}
    return found


def _odd(model: nn.Module, group: Sequence[Block], names: Sequence[str]) -> str:
    """Return the path of the first block whose parameter is unlike that of the first."""

    def like(name: str) -> tuple[Any, ...]:
        return model.get_parameter(name).shape, type(_owner(model, name)[0])

    return next(block.path for block, name in zip(group, names, strict=True) if like(name) != like(names[0]))


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    return model.get_submodule(path), last
