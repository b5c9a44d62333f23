"""Weights with single entries at zero: a mask while training, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core.errors import TargetError
from ..core.sparsity import Sparsity, Targets
from ..core.targets import select
from ..ops.masks import keep_in_rows, keep_n_of_m
from .chains import LINEAR, target_layers
from .matrix import matrix, set_matrix_, stored
from .packable import Obstacle, computed, refuse_obstacles, unseen
from .parametrizations import bake, find
from .sparse import pack_sparse_
from .storage import Packed
from .ties import sharers

STEPS = (
    100  # a schedule's strength moves the mask in so many steps; ranking all weights costs more than a training step
)


class MaskedWeight(nn.Module):
    """Parametrization W' = W * m with one m in {0, 1} per weight; what is masked keeps its value and gets no gradient.

    `step` counts, of `STEPS`, how far the schedule was when the mask was made. `norms` (columns,) of the layer's inputs
    weigh the columns where a method asks for them.
    """

    mask: Tensor
    step: Tensor
    norms: Tensor | None

    def __init__(self, weight: Tensor, columns: int | None = None) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("norms", None if columns is None else torch.ones(columns))

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight`, of the mask's shape, with masked entries at zero."""
        return weight * self.mask


def mask_(model: nn.Module, paths: Sequence[str], strength: float, masks: Callable[[float], Iterable[Tensor]]) -> None:
    """Let the layers `paths` have the masks that `masks` gives for `strength` in [0, 1].

    They are laid out as the wrappers see the weights. The strength is rounded down to one of `STEPS`; where the masks
    were made for it already nothing happens.
    """
    step = int(strength * STEPS)
    wrappers = [find(model, path, MaskedWeight) for path in paths]
    if all(int(w.step) == step for w in wrappers):
        return
    for wrapper, mask in zip(wrappers, masks(step / STEPS), strict=True):
        wrapper.mask.copy_(mask)
        wrapper.step.fill_(step)


def choose(
    model: nn.Module,
    config: Targets,
    where: str,
    kinds: tuple[type[nn.Module], ...] = LINEAR,
    why_not: Obstacle = computed,
) -> list[str]:
    """Return the paths of the layers of these `kinds` that `config` names, by default the linear ones in all blocks.

    Where there are none and `kinds` has convolutions, these. Raises TargetError for a pattern that matches nothing, for
    a weight that is packed already, shared with another layer or out of reach by `why_not`, and where there is nothing
    to take the default from.
    """
    convolutions = nn.Conv2d in kinds
    layers = target_layers(model, config.targets, kinds, where, convolutions=convolutions, why_not=why_not)
    chosen = select(layers, config.targets, config.ignore, f"{where}.targets")
    refuse_obstacles(model, chosen, why_not)
    for path, module in chosen:
        if isinstance(module, Packed) or not module.weight.is_floating_point():  # type: ignore[operator]
            raise TargetError(f"{path}: its weight is packed already; prune it before, or add it to `ignore`")
        if len(sharers(model, path)) > 1:
            raise TargetError(f"{path}: its weight is shared with {sharers(model, path)[1][0]}; add both to `ignore`")
    return [path for path, _ in chosen]


def choose_sparse(model: nn.Module, config: Sparsity, where: str) -> list[str]:
    """Return what `choose` does, and raise TargetError for a layer that the config's n:m pattern does not fit."""
    paths = choose(model, config, where, why_not=unseen)
    if config.pattern is not None:
        refuse_uneven(model, paths, config.pattern[1])
    return paths


def refuse_uneven(model: nn.Module, paths: Iterable[str], m: int) -> None:
    """Raise TargetError for a layer whose inputs don't come in groups of `m`."""
    for path in paths:
        if (columns := matrix(model.get_submodule(path)).shape[1]) % m:
            raise TargetError(f"{path}: its {columns} inputs are no multiple of {m}; add it to `ignore`")


def row_mask(scores: Tensor, config: Sparsity) -> Tensor:
    """Return which of the `scores` (rows, columns) are kept: in every row the highest, as many as the config wants."""
    if config.pattern is not None:
        return keep_n_of_m(scores, *config.pattern)
    return keep_in_rows(scores, config.density)


def zero_smallest_(model: nn.Module, paths: Sequence[str], config: Sparsity) -> None:
    """Set, in every row of the layers `paths`, the smallest weights to zero, as many as the config wants."""
    for path in paths:
        module = model.get_submodule(path)
        weight = matrix(module)
        set_matrix_(module, weight * row_mask(weight.float().abs(), config))


def store_zeros_(model: nn.Module, paths: Sequence[str]) -> dict[str, float]:
    """Make masks permanent, keep only nonzero weights where that takes fewer bytes, and return the counts of both."""
    counts = {"layers": len(paths), "weights": 0, "zeros": 0, "stored_sparse": 0}
    for path in paths:
        bake(model, path, MaskedWeight)  # it is gone where a structural method of the stage made the layer anew
        module = model.get_submodule(path)
        counts["weights"] += stored(module).numel()
        counts["zeros"] += stored(module).numel() - int(stored(module).count_nonzero())
        if not parametrize.is_parametrized(module):  # else a later method of the stage stores the layer its own way
            counts["stored_sparse"] += pack_sparse_(model, path)
    return dict(counts)
