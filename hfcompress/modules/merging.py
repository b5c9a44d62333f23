"""Transformer blocks for images that merge tokens between attention and feed-forward layers (ToMe, Bolya 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError, FamilyError, TargetError
from ..core.families import Block, Family, ImageTokens, blocks_of, family_of
from ..core.foreign_internals import forward_hooks_of
from ..ops.merging import bipartite_places, merge_count, merge_tokens, spread_tokens

KIND = "merging"
CHILD = "merging"  # the child of a block that says how much it merges
KEYS = "merging_keys"  # attribute of a hidden state under way through attention: the list its keys go into
_MOST = 1 << 20


class Merged(NamedTuple):
    """What the tokens of a hidden state stand for."""

    sizes: Tensor  # (batch, tokens) how many of the image's each one is
    places: Tensor  # (batch, tokens of the image) which one each of them is part of


class Merging(nn.Module):
    """Says how many tokens a block merges: a number, or a share of those it is given. It computes nothing itself.

    restore: the block is the last, and gives every token of the image what the one it became part of holds, so that
    whatever reads its output, a mean over patches for one, finds as many as without merging.
    """

    def __init__(self, remove: int | float, restore: bool, parts: Parts) -> None:
        super().__init__()
        self.remove, self.restore, self.parts = remove, restore, parts
        self.on = True


class Parts(NamedTuple):
    """Paths inside a block, and how it is put together."""

    norms: tuple[str, ...]
    attention: str
    key: str
    key_size: int  # width of one head's keys
    tokens: ImageTokens


def _note_keys(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    """Put keys where the block waits for them: at the tensor they are of, so that a thread only finds its own."""
    if (keys := getattr(args[0], KEYS, None)) is not None:
        keys.append(output)


class MergingBlock(nn.Module):
    """What a block's class is mixed with: it then computes what it did, with fewer tokens from one half to the next.

    Sizes and places travel as an attribute of the hidden state, so that blocks may also be called one by one.
    """

    merging: Merging

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return the hidden state (batch, tokens left, width).

        Raises TargetError for an attention mask: it has an entry per token, and they are no longer those of the image.
        """
        merging = self.merging
        if not merging.on:
            return super().forward(hidden_states, attention_mask, **kwargs)
        if attention_mask is not None and not torch.compiler.is_compiling():  # a tracer is given one that masks nothing
            raise TargetError("a model that merges tokens takes no attention_mask: every patch of the image counts")
        parts, merged = merging.parts, getattr(hidden_states, CHILD, None)
        first, second = (self.get_submodule(path) for path in parts.norms)
        attended, keys = self._attend(first(hidden_states), merged, kwargs)
        hidden_states = self._through(parts.tokens.after_attention, attended) + hidden_states
        hidden_states, merged = _merge(hidden_states, keys, merged, merging)
        answer = self.get_submodule(parts.tokens.ffn)(second(hidden_states))
        hidden_states = self._through(parts.tokens.after_ffn, answer) + hidden_states
        if merged is None:
            return hidden_states
        if merging.restore:
            return spread_tokens(hidden_states, merged.places)
        setattr(hidden_states, CHILD, merged)
        return hidden_states

    def _attend(self, hidden: Tensor, merged: Merged | None, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return what attention gives, in proportion to the tokens' sizes (eq. 1), and its keys, a mean over heads."""
        parts = self.merging.parts
        keys: list[Tensor] = []
        mask = None if merged is None else merged.sizes.log()[:, None, None, :].expand(-1, 1, hidden.shape[1], -1)
        projection = self.get_submodule(parts.key)  # another one since the last call, where it was packed or split
        if _note_keys not in forward_hooks_of(projection):
            projection.register_forward_hook(_note_keys)
        setattr(hidden, KEYS, keys)
        try:
            attended = self.get_submodule(parts.attention)(hidden, attention_mask=mask, **kwargs)[0]
        finally:
            setattr(hidden, KEYS, None)  # what holds it would hold itself, through the gradients of the keys
        return attended, keys[0].unflatten(-1, (-1, parts.key_size)).mean(-2)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Return how pickle makes the block anew: its class is made at run time, and lies in no module."""
        return _blank, (type(self).__bases__[1],), self.__dict__

    def _through(self, names: Iterable[str], x: Tensor) -> Tensor:
        for name in names:
            part: Any = getattr(self, name)
            x = part(x) if isinstance(part, nn.Module) else part * x
        return x


def _merge(hidden: Tensor, keys: Tensor, merged: Merged | None, how: Merging) -> tuple[Tensor, Merged | None]:
    tokens, leading = hidden.shape[1], how.parts.tokens.leading
    remove = merge_count(how.remove, tokens, leading)
    if not remove:
        return hidden, merged
    places = bipartite_places(keys, leading, remove)
    sizes = hidden.new_ones(hidden.shape[:2]) if merged is None else merged.sizes
    hidden, sizes = merge_tokens(hidden, sizes, places, tokens - remove)
    return hidden, Merged(sizes, places if merged is None else places.gather(1, merged.places))


# ------------------------------------------------------------------ putting it into a model


def mergeable_blocks(model: nn.Module, family: Family) -> list[Block]:
    """Return the blocks; FamilyError with the reason where tokens can't be merged."""
    name, blocks = type(model).__name__, blocks_of(model, family)
    if any(block.tables or block.locked for block in blocks):
        raise FamilyError(
            f"tokens of a {name} can't be merged: its attention adds a bias for every pair of places, and a merged "
            "token has no place"
        )
    _image_tokens(model, family)
    return blocks


def _image_tokens(model: nn.Module, family: Family) -> ImageTokens:
    if family.image_tokens is None:
        raise FamilyError(
            f"tokens of a {type(model).__name__} can't be merged: they are not the patches of one image in one row"
        )
    return family.image_tokens


def merge_in_blocks_(model: nn.Module, family: Family, remove: Iterable[int | float]) -> list[Merging]:
    """Let every block merge as many tokens as `remove` says, in order; the last gives the image's tokens back.

    Raises FamilyError as `mergeable_blocks` does.
    """
    blocks = mergeable_blocks(model, family)
    specs = [
        {"kind": KIND, "remove": n, "restore": block is blocks[-1]} for n, block in zip(remove, blocks, strict=True)
    ]
    return [_attach_(model, block, family, spec) for block, spec in zip(blocks, specs, strict=True)]


def merges(model: nn.Module) -> bool:
    """Say whether blocks of the model merge tokens, or are about to."""
    return any(isinstance(module, Merging) for module in model.modules())


def merging_spec(module: nn.Module) -> dict[str, Any] | None:
    """Return the spec of a Merging that is in force, None for any other module."""
    if not isinstance(module, Merging) or not module.on:
        return None
    return {"kind": KIND, "remove": module.remove, "restore": module.restore}


def add_merging_(model: nn.Module, path: str, spec: Mapping[str, Any]) -> None:
    """Put a Merging at `path`, as a checkpoint says; CheckpointError for a place or a spec that can't be."""
    owner, _, name = path.rpartition(".")
    remove, restore = spec.get("remove"), spec.get("restore")
    number = type(remove) is int and 0 <= remove <= _MOST
    share = type(remove) is float and 0 <= remove <= 1
    if set(spec) != {"kind", "remove", "restore"} or type(restore) is not bool or not (number or share):
        raise CheckpointError(f"{path}: {dict(spec)} does not say how tokens are merged")
    try:
        family = family_of(model)
        blocks = {block.path: block for block in mergeable_blocks(model, family)}
    except FamilyError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if name != CHILD or owner not in blocks:
        raise CheckpointError(f"{path} is no place where tokens are merged")
    _attach_(model, blocks[owner], family, spec)


def passed_on(block: nn.Module, hidden: Tensor) -> Tensor:
    """Return what comes of a hidden state where `block` is left out: the last block's task is done without it."""
    merging, merged = getattr(block, CHILD, None), getattr(hidden, CHILD, None)
    last = isinstance(merging, Merging) and merging.on and merging.restore
    return spread_tokens(hidden, merged.places) if last and merged is not None else hidden


def give_back_in_(block: nn.Module) -> None:
    """Let `block`, now the last, give the image's tokens back, if it is one that merges."""
    if isinstance(merging := getattr(block, CHILD, None), Merging):
        merging.restore = True


def tokens_left(model: nn.Module, family: Family, tokens: int) -> list[int]:
    """Return how many of `tokens`, the leading ones among them, every block hands on before the last restores them."""
    counts, leading = [], _image_tokens(model, family).leading
    for block in blocks_of(model, family):
        merging: Any = model.get_submodule(f"{block.path}.{CHILD}")
        tokens -= merge_count(merging.remove, tokens, leading)
        counts.append(tokens)
    return counts


def _attach_(model: nn.Module, block: Block, family: Family, spec: Mapping[str, Any]) -> Merging:
    module, prefix = model.get_submodule(block.path), f"{block.path}."
    parts = Parts(
        tuple(norm.removeprefix(prefix) for norm in block.norms),
        block.module.removeprefix(prefix),
        block.key.removeprefix(prefix),
        block.key_size,
        _image_tokens(model, family),
    )
    module.add_module(CHILD, Merging(spec["remove"], spec["restore"], parts).train(module.training))
    module.__class__ = _merging_class(type(module))  # type: ignore[arg-type]
    return module.merging  # type: ignore[return-value]


@cache
def _merging_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class of blocks of `cls` that merge; of the same name, by which transformers knows its blocks."""
    return (
        cls
        if issubclass(cls, MergingBlock)
        else type(cls.__name__, (MergingBlock, cls), {"__module__": cls.__module__})
    )


def _blank(cls: type[nn.Module]) -> nn.Module:
    """Return a block of `cls` that merges and holds nothing yet."""
    made = _merging_class(cls)  # type: ignore[arg-type]
    return made.__new__(made)
