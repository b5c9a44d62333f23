"""One-shot removal of groups of columns with what feeds them: what goes, and how the rest makes up for it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.families import width_in
from ..core.progress import track
from ..core.removal import RemovalConfig
from ..ops.allocation import allocate, dropped, keep_counts
from ..ops.latency import Widths, seconds_by_count
from ..ops.masks import keep_highest
from ..ops.reconstruction import InputMoments, refit, rescale
from .blockwise import walk_
from .cut import BiasCut, ColumnCut, attach_cut, bake_cut_, cuts, switch
from .importance import Batch, Importance, fisher
from .matrix import matrix
from .parametrizations import refuse_composite
from .shrink import refuse_uncuttable
from .ties import refuse_shared


@dataclass(frozen=True)
class Columns:
    """The input columns of the layer at `path`, which go in groups of `size`, and the layers whose outputs they are."""

    path: str
    size: int
    feeds: tuple[str, ...]
    attention: bool = False  # between `feeds` and this layer, positions meet each other


class Removal:
    """Chooses, as one RemovalConfig says, which groups of several layers' columns go, and shows the model without them.

    Taking them out of the layers is left to the caller, who knows what they are.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[Columns], config: RemovalConfig, *, multiple: int, seed: int
    ) -> None:
        """Wrap the layers, switched off, with a choice as if the groups of every layer were worth the same.

        multiple: what the groups kept of a layer are a multiple of. Raises TargetError when so much can't be removed,
        and for a layer that can't be cut.
        """
        self.layers, self.config, self.multiple, self.seed = list(layers), config, multiple, seed
        for layer in self.layers:
            refuse_shared(model, layer.path)
            module: Any = model.get_submodule(layer.path)
            refuse_composite(layer.path, module)
            for path in (layer.path, *layer.feeds):
                refuse_uncuttable(path, model.get_submodule(path))
            groups = width_in(module) // layer.size
            attach_cut(model, layer.path, ColumnCut(matrix(module), groups, layer.size, config.tune, config.ridge))
        ramps = [torch.arange(len(keep), 0, -1) / len(keep) for keep in self.keep(model)]
        self._choose(model, [Importance(ramp, 1.0, 1.0) for ramp in ramps])

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]], title: str) -> None:
        """Choose by Fisher information, with what other methods of the stage chose in force; then fit what is left.

        Own layers are fitted first, then those of other methods once more, on inputs that come through the own ones.
        """
        batches = list(batches)
        for act in track((self._measure, self._fit_own, self._fit_others), lambda _: title):
            with _in_force(model):
                act(model, batches, title)

    def switch(self, model: nn.Module, on: bool) -> None:
        """Put the choice into force, or take it out."""
        for cut, bias in self._cuts(model):
            switch(cut, bias, on)

    def keep(self, model: nn.Module) -> list[Tensor]:
        """Return, per layer, which groups stay."""
        return [cut.keep for cut, _ in self._cuts(model)]

    def bake_(self, model: nn.Module) -> list[Tensor]:
        """Write the fitted weights into the layers, take the wrappers off, and return, per layer, which groups stay."""
        keep = self.keep(model)
        for layer in self.layers:
            bake_cut_(model, layer.path)
        return keep

    def _cuts(self, model: nn.Module) -> list[tuple[ColumnCut, BiasCut | None]]:
        found = {path: (cut, bias) for path, cut, bias in cuts(model)}
        return [found[layer.path] for layer in self.layers]

    def _measure(self, model: nn.Module, batches: Sequence[Batch], title: str) -> None:
        groups = {layer.path: layer.size for layer in self.layers}
        found = fisher(model, groups, batches, self.seed, f"{title}: importance")
        self._choose(model, [found[layer.path] for layer in self.layers])

    def _fit_own(self, model: nn.Module, batches: Sequence[Batch], title: str) -> None:
        _fit(model, {layer.path for layer in self.layers}, batches, title)
        for cut, _ in self._cuts(model):
            cut.chosen.fill_(True)

    def _fit_others(self, model: nn.Module, batches: Sequence[Batch], title: str) -> None:
        own = {layer.path for layer in self.layers}
        _fit(model, {path for path, cut, _ in cuts(model) if cut.chosen} - own, batches, title)

    @torch.no_grad()
    def _choose(self, model: nn.Module, importance: Sequence[Importance]) -> None:
        scores = [each.scores for each in importance]
        counts = keep_counts(scores, self.multiple)
        every = zip(self.layers, counts, importance, strict=True)
        costs = [self._costs(model, layer, count, each) for layer, count, each in every]
        chosen = allocate(dropped(scores, counts), costs, 1 - self.config.remove)
        for i, (cut, bias) in enumerate(self._cuts(model)):
            cut.keep.copy_(keep_highest(scores[i], int(counts[i][chosen[i]])))
            _tune(model.get_submodule(self.layers[i].path), cut, bias, None)

    def _costs(self, model: nn.Module, layer: Columns, counts: Tensor, found: Importance) -> Tensor:
        """Return what a layer costs by how many groups it keeps, in the unit of the budget."""
        budget, groups, size = self.config.budget, len(found.scores), layer.size
        if budget == "count":
            return counts
        reads: Any = model.get_submodule(layer.path)
        feeds: list[Any] = [model.get_submodule(path) for path in dict.fromkeys(layer.feeds)]
        rows = sum(len(matrix(feed)) for feed in feeds) // groups
        if budget == "latency":
            widths = Widths(matrix(feeds[0]).shape[1], rows, size, len(matrix(reads)))
            return seconds_by_count(widths, counts, self.config.latency_tokens)
        weights = len(matrix(reads)) * size + sum(matrix(feed).numel() for feed in feeds) // groups
        if budget == "parameters":
            return counts * (weights + sum(len(matrix(feed)) for feed in feeds if feed.bias is not None) // groups)
        scores_and_values = 2 * found.length * size if layer.attention else 0.0
        return (counts * found.tokens * (weights + scores_and_values)).round()


def refit_without_(
    model: nn.Module, keep: Mapping[str, Tensor], batches: Sequence[Batch], title: str, ridge: float = 0.01
) -> None:
    """Refit every layer of `keep`, in place, to do without the groups of its input columns where its mask is False.

    keep: by path, a mask over groups of columns. Block by block, on inputs from blocks that are fitted already; the
    columns themselves stay, as zeros. ridge: as in RemovalConfig.
    """
    for path, mask in keep.items():
        module: Any = model.get_submodule(path)
        cut = ColumnCut(matrix(module), len(mask), width_in(module) // len(mask), "weights", ridge)
        attach_cut(model, path, cut)
        cut.keep.copy_(mask)
    _fit(model, set(keep), batches, title)
    for path in keep:
        bake_cut_(model, path)


def _fit(model: nn.Module, paths: Collection[str], batches: Sequence[Batch], title: str) -> None:
    """Fit the layers `paths`, block by block, on inputs from fitted blocks."""
    found = {path: (cut, bias) for path, cut, bias in cuts(model) if path in paths and cut.tune != "none"}

    def compress(layers: list[str], inputs: InputMoments) -> None:
        for path in layers:
            _tune(model.get_submodule(path), *found[path], inputs.matrix)
            switch(*found[path], True)

    if found:
        walk_(model, batches, list(found), InputMoments, compress, title)


@torch.no_grad()
def _tune(module: Any, cut: ColumnCut, bias: BiasCut | None, moments: Tensor | None) -> None:
    """Set what the layer becomes: without `moments` of its inputs the kept columns stay as they are."""
    on = bool(cut.on)
    switch(cut, bias, False)
    weight, constant, columns = matrix(module), module.bias, cut.keep.repeat_interleave(cut.size)
    if moments is None or cut.tune == "none":
        weight = weight * columns.to(weight.dtype)
    elif cut.tune == "mask":
        weight = rescale(weight, cut.keep, cut.size, moments, cut.ridge)
    else:
        weight, constant = refit(weight, constant, columns, moments, cut.ridge)
    cut.value.copy_(weight)
    if bias is not None:
        bias.value.copy_(constant)
    switch(cut, bias, on)


@contextlib.contextmanager
def _in_force(model: nn.Module) -> Iterator[None]:
    """Show the model without what has been chosen to go; what has not stays."""
    for _, cut, bias in cuts(model):
        switch(cut, bias, bool(cut.chosen))
    try:
        yield
    finally:
        for _, cut, bias in cuts(model):
            switch(cut, bias, False)
