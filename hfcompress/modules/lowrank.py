"""Splitting layers of a model into factors: which layers, at what rank, and showing the result before it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..core.errors import TargetError
from ..core.factorization import KernelConfig, RankConfig
from ..core.targets import select
from ..ops.lowrank import Decomposition, allocate_ranks, largest_saving_rank, rank_of_energy
from .chains import LINEAR, layers_of, target_layers
from .joined import joined_layers
from .matrix import matrix
from .packable import obstacle, without_obstacles
from .packed import PackedEmbedding
from .parametrizations import attach, detach, find
from .splitting import PRODUCTS, refuse_unsplittable, split_tied_
from .ties import places_of, sharers

Shape = tuple[int, int]
Ranks = dict[str, int | None]  # None: left whole


class Shown(nn.Module):
    """Parametrization that gives `values`, laid out as the layer's weight, in its place; the weight itself if None."""

    def __init__(self) -> None:
        super().__init__()
        self.values: Tensor | None = None  # computed from the weight, so no checkpoint needs it

    def forward(self, weight: Tensor) -> Tensor:
        """Return what is to be seen in place of `weight`."""
        return weight if self.values is None else self.values


@dataclass
class Split:
    """The layers a method splits into two factors, and how that came out; shapes are those of `matrix`.

    Layers that share a weight count once, by the path of the first, and share its factors.
    """

    name: str
    config: RankConfig
    places: dict[str, list[str]]  # of each path those with its weight, it first
    shapes: dict[str, Shape]
    ranks: Ranks
    joined: list[list[str]]  # paths of layers that a file holds as one

    @classmethod
    def choose(cls, model: nn.Module, config: RankConfig, name: str, *, tables: bool = True) -> Split:
        """Choose the layers, by default the linear ones in all blocks; with `tables` embeddings may be named too.

        Raises TargetError for a pattern that matches nothing, for a layer that does not split, and for a rank that
        saves nothing.
        """
        kinds = (*LINEAR, *((nn.Embedding, PackedEmbedding) if tables else ()))
        instead = ": take a low-rank method for embedding tables"
        layers = target_layers(model, config.targets, kinds, name, tables_by=instead)
        places: dict[str, list[str]] = {}
        for path, _ in select(layers, config.targets, config.ignore, f"{name}.targets"):
            if not any(path in tied for tied in places.values()):
                places[path] = places_of(model, path)
                _refuse_mixed(model, places[path], name)
                for place in places[path]:
                    refuse_unsplittable(model, place, PRODUCTS if tables else PRODUCTS[:2], name, shared=True)
        shapes = {path: _shape(model.get_submodule(path)) for path in places}
        if config.rank is not None:
            _refuse_rank(config.rank, shapes, name)
        return cls(name, config, places, shapes, {}, joined_layers(model))

    @property
    def paths(self) -> list[str]:
        """The paths of the layers."""
        return list(self.shapes)

    def decide(self, squares: Mapping[str, Tensor]) -> Ranks:
        """Choose every layer's rank by the squared singular values of what each method decomposes, and return them.

        Raises TargetError when none would get smaller, or the budget is too low.
        """
        config = self.config
        if config.keep is not None:
            errors = [squares[path] for path in self.shapes]
            if config.compare == "relative":
                errors = [e / e.sum().clamp(min=torch.finfo(e.dtype).tiny) for e in errors]
            try:
                ranks = allocate_ranks(errors, list(self.shapes.values()), config.keep, config.round_to)
            except TargetError as error:
                raise TargetError(f"{self.name}.keep: {error}") from error
            self.ranks = dict(zip(self.shapes, ranks, strict=True))
        else:
            self.ranks = {path: config.rank or self._by_energy(squares[path], path) for path in self.shapes}
        for group in self.joined:  # one tensor in a file: all are split, or none is
            if any(self.ranks.get(path) is not None for path in group):
                self.ranks |= {p: self.ranks[p] or self._largest(p) for p in group if p in self.ranks}
        if all(rank is None for rank in self.ranks.values()):
            key, value = ("keep", config.keep) if config.energy is None else ("energy", config.energy)
            raise TargetError(f"{self.name}.{key}: {value} leaves every layer whole; nothing would be saved: lower it")
        return self.ranks

    def report(self) -> dict[str, float]:
        """Return layers split and left whole, their weights before and after, and the least and largest rank."""
        ranks = [rank for rank in self.ranks.values() if rank is not None]
        return {
            "layers": len(ranks),
            "layers_left_whole": len(self.ranks) - len(ranks),
            "weights_before": sum(math.prod(shape) for shape in self.shapes.values()),
            "weights_after": sum(_left(self.shapes[path], rank) for path, rank in self.ranks.items()),
            "rank_min": min(ranks, default=0),
            "rank_max": max(ranks, default=0),
        }

    def _largest(self, path: str) -> int:
        multiple = self.config.round_to
        return max(multiple, largest_saving_rank(*self.shapes[path]) // multiple * multiple)

    def _by_energy(self, squares: Tensor, path: str) -> int | None:
        multiple = self.config.round_to
        rank = -(-rank_of_energy(squares, self.config.energy or 1.0) // multiple) * multiple
        return rank if rank <= min(largest_saving_rank(*self.shapes[path]), len(squares)) else None


class Show:
    """Shows what layers will be before they are: a weight computed from factors, by path, at full strength.

    places: of each path those of all layers that share its weight.
    """

    def __init__(self, model: nn.Module, places: Mapping[str, Sequence[str]]) -> None:
        self.places = {path: list(tied) for path, tied in places.items()}
        self.paths = [place for tied in self.places.values() for place in tied]
        for path in self.paths:
            attach(model, path, Shown())

    def off(self, model: nn.Module) -> None:
        """Show the layers' own weights."""
        for path in self.paths:
            find(model, path, Shown).values = None

    def on(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Show `weights`, each of as many numbers as the layer's own and laid out as `matrix`."""
        for path, values in weights.items():
            module = model.get_submodule(path)
            own = module.parametrizations["weight"].original  # type: ignore[index,union-attr]
            laid = values.T if isinstance(module, Conv1D) else values
            for place in self.places[path]:
                find(model, place, Shown).values = laid.reshape(own.shape).to(own.dtype)

    def remove(self, model: nn.Module) -> None:
        """Take the wrappers off."""
        for path in self.paths:
            detach(model, path, Shown)


@torch.no_grad()
def split_all_(model: nn.Module, decompositions: Mapping[str, Decomposition], ranks: Ranks) -> None:
    """Split the layers that have a rank by their decompositions, in place, and those that share their weight."""
    for path, found in decompositions.items():
        if (rank := ranks[path]) is not None:
            split_tied_(model, sharers(model, path), *found.cut(rank))


def _left(shape: Shape, rank: int | None) -> int:
    return math.prod(shape) if rank is None else rank * sum(shape)


def _shape(module: nn.Module) -> Shape:
    rows, columns = matrix(module).shape
    return rows, columns


def _refuse_mixed(model: nn.Module, places: Sequence[str], name: str) -> None:
    """Raise TargetError for a weight that is the table of tokens here and gives logits there."""
    tables = {place: isinstance(model.get_submodule(place), nn.Embedding | PackedEmbedding) for place in places}
    if len(set(tables.values())) > 1:
        raise TargetError(
            f"{name}: {places[0]}: its weight is both a table and the layer that gives logits ({', '.join(places)}): "
            "split it by a low-rank method for embedding tables, which keeps the two tied, or untie them first"
        )


def _refuse_rank(rank: int, shapes: Mapping[str, Shape], name: str) -> None:
    for path, shape in shapes.items():
        if rank > largest_saving_rank(*shape):
            raise TargetError(
                f"{name}.rank: {rank} saves nothing at {path} ({shape[0]} x {shape[1]}), where a rank of at most "
                f"{largest_saving_rank(*shape)} does; lower it, or add the layer to `ignore`"
            )


def choose_kernels(model: nn.Module, config: KernelConfig, name: str) -> list[str]:
    """Return the convolutions that `config` names, by default all whose channels are not in groups.

    Raises TargetError where there are none, and for one named whose channels are in groups: what a group reads is
    narrow already, and factors over all channels would undo the grouping.
    """
    layers = layers_of(model, (nn.Conv2d,))
    if not layers:
        raise TargetError(f"{name}: a {type(model).__name__} has no convolution (nn.Conv2d)")
    if config.targets is None:
        layers = [(path, layer) for path, layer in layers if layer.groups == 1]
        layers = without_obstacles(model, layers, obstacle)
        if not layers:
            raise TargetError(
                f"{name}: all convolutions of this {type(model).__name__} have their channels in groups, or compute in "
                "a way of their own"
            )
    chosen = select(layers, config.targets, config.ignore, f"{name}.targets")
    for path, module in chosen:
        refuse_unsplittable(model, path, (nn.Conv2d,), name)
        if module.groups != 1:
            raise TargetError(
                f"{name}: {path}: its {module.in_channels} channels are in {module.groups} groups, and factors over "
                "all channels would be larger; add it to `ignore`"
            )
        if module.padding_mode != "zeros":
            raise TargetError(f"{name}: {path}: its padding is {module.padding_mode!r}, not zeros; add it to `ignore`")
    return [path for path, _ in chosen]


def kernel_report(model: nn.Module, paths: Sequence[str], before: int) -> dict[str, float]:
    """Return how many convolutions were split, and their weights before and after."""
    parameters = [
        p for path in paths for n, p in model.get_submodule(path).named_parameters() if not n.endswith("bias")
    ]
    return {"layers": len(paths), "weights_before": before, "weights_after": sum(p.numel() for p in parameters)}
