"""A student made from a model: fewer blocks, heads, units and channels, with the weights of those that stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.errors import TargetError
from ..core.families import (
    Attention,
    Block,
    Family,
    Stack,
    blocks_of,
    family_of,
    head_count,
    require_removable_heads,
    unit_count,
)
from ..core.student import StudentConfig, resolve
from ..ops.masks import keep_highest
from .depth import droppable_stacks, keep_blocks_
from .embedding_width import EmbeddingWidth, has_own_width, narrow_table_
from .importance import Batch, fisher
from .matrix import matrix
from .projection import Projection, principal_projection, project_channels_
from .removal import refit_without_
from .shrink import keep_heads_, keep_units_
from .width import activations, keep_channels_, magnitudes, stream_axes, stream_norms, stream_width

_SHOWN = 8


@dataclass(frozen=True)
class _Group:
    """Heads or units of one layer: the path whose input columns they are, columns each, and how many stay."""

    path: str
    size: int
    total: int
    left: int


def derive_student_(
    model: nn.Module, config: StudentConfig, batches: Iterable[Batch] | None = None, seed: int = 0
) -> list[str]:
    """Make `model` the student that `config` describes, in place, and return where its weights come from, in words.

    Importance is measured on the whole model with `batches` of model inputs; without any, as in a plan, by weights:
    then which parts go is not final, how many is. Raises TargetError, FamilyError for what cannot be made.
    """
    family, data = family_of(model), None if batches is None else list(batches)
    blocks = blocks_of(model, family)
    chosen = _chosen_blocks(model, family, config)
    heads, units = _head_groups(model, blocks, config), _unit_groups(model, blocks, config)
    masks = _most_important(model, [*heads, *units], data, seed)
    channels = _channels(model, family, blocks, config, data)
    bottleneck = config.embedding_size is not None and not has_own_width(model, family)
    embeddings = None if bottleneck else _embedding_channels(model, family, config, data)
    left = _drop(model, family, blocks, chosen)
    if channels is not None:
        channels.apply_(model, family)
    if embeddings is not None:
        EmbeddingWidth(model, family).keep_(model, embeddings)
    # With blocks or channels gone, what layers read is not what their outputs were made for: fitting to it does harm.
    fits = len(left) == len(blocks) and channels is None and config.embedding_size is None
    _cut_blocks_(model, [(old, new, masks) for old, new in left], data if fits else None)
    notes = [_layers_note(stack, kept, depth) for stack, kept, depth in chosen]
    most = "of most Fisher information" + (", what reads them refitted" if fits else "")
    notes += _size_notes(f"heads per block, {most}", heads) + _size_notes(
        f"feed-forward units per block, {most}", units
    )
    notes += [] if channels is None else [channels.note]
    notes += [] if embeddings is None else [f"{_of(embeddings)} channels of embeddings, of largest mean |h|"]
    if config.embedding_size is not None and bottleneck:
        notes.append(narrow_table_(model, config.embedding_size, config.round_to, data))
        return [*notes, "task head: the model's own"]
    return [*notes, "embeddings and task head: the model's own"]


def _drop(
    model: nn.Module, family: Family, blocks: Sequence[Block], chosen: Sequence[tuple[Stack, list[int], int]]
) -> list[tuple[Block, Block]]:
    """Take the blocks out that were not chosen, and return the others as (what it was, what it is)."""
    positions, before = [], 0
    for stack, kept, depth in chosen:
        positions += [before + i for i in kept]
        before += depth
        if len(kept) < depth:
            keep_blocks_(model, family, stack, kept)
    stayed = [blocks[i] for i in positions] if chosen else blocks
    return list(zip(stayed, blocks_of(model, family), strict=True))


def _cut_blocks_(
    model: nn.Module, blocks: Sequence[tuple[Block, Block, dict[str, Tensor]]], data: Sequence[Batch] | None
) -> None:
    """Slice heads and units out where there are masks of which to keep, by the paths the layers had.

    With `data`, what reads them is refitted first to make up for those that go.
    """
    pairs = [(a, b, m) for old, new, m in blocks for a, b in zip(_attentions([old]), _attentions([new]), strict=True)]
    heads = [(new, masks[old.output]) for old, new, masks in pairs if old.output in masks]
    units = [(new, masks[old.down]) for old, new, masks in blocks if old.down in masks]
    if data is not None and (heads or units):
        keep = {a.output: mask for a, mask in heads} | {block.down: mask for block, mask in units}
        refit_without_(model, keep, data, "Student: refitting")
    for attention, mask in heads:
        keep_heads_(model, attention, mask)
    for block, mask in units:
        keep_units_(model, block, mask)


def evenly(total: int, number: int) -> list[int]:
    """Return `number` indices below `total`: the first, the last and evenly spaced ones between; one is the last."""
    if number == 1:
        return [total - 1]
    return [round(i * (total - 1) / (number - 1)) for i in range(number)]


def _chosen_blocks(model: nn.Module, family: Family, config: StudentConfig) -> list[tuple[Stack, list[int], int]]:
    """Return (stack, indices of the blocks to keep, blocks it has) of every stack; empty when all stay."""
    if config.layers is None and not isinstance(config.choose, list):
        return []
    found = []
    for stack in droppable_stacks(model, family):
        depth, step = stack.depth(model), family.depth.step
        kept = _kept(config, depth, step, family)
        found.append((stack, kept, depth))
    return found


def _kept(config: StudentConfig, depth: int, step: int, family: Family) -> list[int]:
    if isinstance(config.choose, list):
        kept = config.choose
        if sorted(set(kept)) != kept or not kept or not 0 <= kept[0] <= kept[-1] < depth:
            raise TargetError(f"student.choose: {kept} are not numbers of blocks in order; there are 0 to {depth - 1}")
        if family.depth.first_stays and kept[0] != 0:
            raise TargetError(f"student.choose: block 0 has to stay: {family.depth.first_stays}")
        if step > 1 and [i for u in sorted({i // step for i in kept}) for i in _unit(u, step, depth)] != kept:
            raise TargetError(f"student.choose: of this model only {step} adjacent blocks can go together")
        return kept
    units = -(-depth // step)
    wanted = resolve(config.layers, depth, "student.layers")
    number = min(units, max(1, round(wanted / step)))
    if config.choose == "uniform":
        chosen = evenly(units, number)
        chosen = [0] if number == 1 and family.depth.first_stays else chosen
    elif config.choose == "every_other":
        chosen = [i * units // number for i in range(number)]
    elif config.choose == "first":
        chosen = list(range(number))
    else:
        first = [0] if family.depth.first_stays else []
        chosen = first + list(range(units - number + len(first), units))
    return [i for u in chosen for i in _unit(u, step, depth)]


def _unit(index: int, step: int, depth: int) -> range:
    return range(index * step, min((index + 1) * step, depth))


def _attentions(blocks: Sequence[Block]) -> list[Attention]:
    return [a for b in blocks for a in (b, b.cross) if a is not None]


def _head_groups(model: nn.Module, blocks: Sequence[Block], config: StudentConfig) -> list[_Group]:
    if config.heads is None:
        return []
    require_removable_heads(blocks)
    counts = [(a, head_count(model, a)) for a in _attentions(blocks)]
    return [_Group(a.output, a.head_size, n, resolve(config.heads, n, "student.heads")) for a, n in counts]


def _unit_groups(model: nn.Module, blocks: Sequence[Block], config: StudentConfig) -> list[_Group]:
    if config.ffn is None:
        return []
    counts = [(b.down, unit_count(model, b)) for b in blocks]
    return [_Group(path, 1, n, resolve(config.ffn, n, "student.ffn", config.round_to)) for path, n in counts]


@torch.no_grad()
def _most_important(
    model: nn.Module, groups: Sequence[_Group], data: Sequence[Batch] | None, seed: int
) -> dict[str, Tensor]:
    """Return, by layer, which of its groups stay."""
    if data is None:
        scores = {g.path: _strength(model.get_submodule(g.path), g) for g in groups}
    elif groups:
        found = fisher(model, {g.path: g.size for g in groups}, data, seed, "Student: importance")
        scores = {path: importance.scores for path, importance in found.items()}
    return {g.path: keep_highest(scores[g.path], g.left) for g in groups}


def _strength(layer: nn.Module, group: _Group) -> Tensor:
    """Return the norm of each group's columns; on the meta device any, as there are no values."""
    weight = matrix(layer)
    if weight.is_meta:
        return torch.arange(group.total, 0, -1, dtype=torch.float32)
    return weight.detach().float().norm(dim=0).view(group.total, -1).norm(dim=1).cpu()


@dataclass(frozen=True)
class _Channels:
    """How the residual stream becomes narrower: by a mask of the channels that stay, or by a projection of all."""

    how: Tensor | Projection
    note: str

    def apply_(self, model: nn.Module, family: Family) -> None:
        axes = stream_axes(model, family)
        if isinstance(self.how, Projection):
            project_channels_(model, axes, stream_norms(model, family), self.how)
        else:
            keep_channels_(model, axes, self.how)


@torch.no_grad()
def _channels(
    model: nn.Module, family: Family, blocks: Sequence[Block], config: StudentConfig, data: Sequence[Batch] | None
) -> _Channels | None:
    """Return what becomes of the channels of the residual stream; None when all stay."""
    if config.hidden_size is None:
        return None
    axes, width = stream_axes(model, family), stream_width(model, blocks)
    left = resolve(config.hidden_size, width, "student.hidden_size", config.round_to)
    if data is None:
        keep = keep_highest(magnitudes(model, axes, width), left)
        return _Channels(keep, f"{_of(keep)} channels of the hidden state")
    paths = [block.path for block in blocks]
    if config.channels == "pca":
        found = principal_projection(model, paths, stream_norms(model, family), data, left)
        note = f"{left} of {width} principal directions of the hidden state, {found.energy:.1%} of its energy"
        return _Channels(found, note)
    keep = keep_highest(activations(model, paths, data), left)
    return _Channels(keep, f"{_of(keep)} channels of the hidden state, of largest mean |h|")


def _embedding_channels(
    model: nn.Module, family: Family, config: StudentConfig, data: Sequence[Batch] | None
) -> Tensor | None:
    """Return which channels of embeddings narrower than the hidden state stay; None when all do."""
    if config.embedding_size is None:
        return None
    found = EmbeddingWidth(model, family)
    left = resolve(config.embedding_size, found.width, "student.embedding_size", config.round_to)
    return keep_highest(found.scores(model, data), left)


def _layers_note(stack: Stack, kept: Sequence[int], depth: int) -> str:
    shown = ", ".join(map(str, kept[:_SHOWN])) + (", …" if len(kept) > _SHOWN else "")
    return f"{len(kept)} of {depth} blocks of {stack.path}: {shown}"


def _of(keep: Tensor) -> str:
    return f"{int(keep.sum())} of {len(keep)}"


def _size_notes(what: str, groups: Sequence[_Group]) -> list[str]:
    sizes = sorted({(g.left, g.total) for g in groups})
    return [f"{', '.join(f'{left} of {total}' for left, total in sizes)} {what}"] if groups else []
