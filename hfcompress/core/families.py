"""The model types this package knows, and where a concrete model of one of them has its parts.

A new architecture is one `register_family` call; nothing else in the package knows a model by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .convolutional_families import CONVOLUTIONAL
from .errors import FamilyError, nearest
from .family import AttentionPaths, ChannelKey, Depth, EmbeddingPaths, Family, FeedForwardPaths, ImageTokens
from .known_families import KNOWN
from .weight_reads import read_directly

__all__ = ["AttentionPaths", "ChannelKey", "Depth", "EmbeddingPaths", "Family", "FeedForwardPaths", "ImageTokens"]


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The attention of one block, with the projections as modules' full paths.

    A head is what can be removed alone: with grouped queries a key/value head with all query heads that read it.
    """

    module: str
    query: str
    key: str
    value: str
    output: str
    head_size: int  # columns of `output`, and rows of `query`, that belong to one head
    key_size: int  # rows of `key` and `value` that belong to one head: the width the attention works in
    more: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    locked: str = ""  # why no head can be removed

    @property
    def fused(self) -> bool:
        """Whether one layer computes query, key and value, its rows in this order."""
        return self.query == self.key


@dataclass(frozen=True, kw_only=True)
class Block(Attention):
    """One transformer block of a concrete model: its (self-)attention, feed-forward layers and norms."""

    path: str
    up: tuple[str, ...]
    down: str
    norms: tuple[str, ...] = ()
    cross: Attention | None = None


@dataclass(frozen=True)
class Stack:
    """Blocks that follow each other: the path of the list that holds them, and where the config counts them."""

    path: str
    key: str
    index: int | None = None  # position in the config's list, where it counts several stacks in one

    def depth(self, model: nn.Module) -> int:
        """Return the number of blocks."""
        return len(list(model.get_submodule(self.path).children()))


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Teach the package a model type; raises ValueError when it is already known."""
    if family.model_type in _FAMILIES:
        raise ValueError(f"model type {family.model_type!r} is already registered")
    _FAMILIES[family.model_type] = family
    return family


for _family in (*KNOWN, *CONVOLUTIONAL):
    register_family(_family)


def families() -> list[str]:
    """Return the known model types."""
    return sorted(_FAMILIES)


def family_named(model_type: str) -> Family:
    """Return the family of a model type; FamilyError says how to add one."""
    if model_type not in _FAMILIES:
        raise FamilyError(
            f"model type {model_type!r} is not known.{nearest(model_type, _FAMILIES)} To add it, describe where its "
            f"blocks, projections and embeddings live: hfcompress.register_family(Family(model_type={model_type!r}, "
            "blocks=…, attention=…, feed_forward=…, embeddings=…)); see hfcompress/core/known_families.py for examples."
        )
    return _FAMILIES[model_type]


def family_of(model: nn.Module) -> Family:
    """Return the family of a transformers model; FamilyError says how to add one."""
    return family_named(str(getattr(getattr(model, "config", None), "model_type", type(model).__name__)))


def base_prefix(model: nn.Module) -> str:
    """Return the path of the base model inside `model`, with a trailing dot, or "" if `model` is the base model."""
    name = str(getattr(model, "base_model_prefix", ""))
    return f"{name}." if name and hasattr(model, name) else ""


def stacks_of(model: nn.Module, family: Family) -> list[Stack]:
    """Return the model's lists of blocks in order; an encoder without its decoder has one fewer.

    Raises FamilyError when none of the lists the family names is there, or it is of a convolutional network.
    """
    if family.attention is None:
        raise FamilyError(
            f"a {type(model).__name__} is a convolutional network: it has no transformer blocks with heads and "
            "feed-forward units; prune its channels instead"
        )
    prefix, stacks = base_prefix(model), []
    for key, pattern in zip(family.depth.keys, family.block_lists, strict=True):
        head, star, tail = f"{prefix}{pattern}".partition(".*.")
        if not has_module(model, head):
            continue
        if star:
            count = len(list(model.get_submodule(head).children()))
            stacks += [Stack(f"{head}.{i}.{tail}", key, i) for i in range(count)]
        else:
            stacks.append(Stack(head, key))
    if not stacks:
        raise FamilyError(f"this {type(model).__name__} has no {' or '.join(family.block_lists)} to hold its blocks")
    return stacks


def blocks_of(model: nn.Module, family: Family) -> list[Block]:
    """Return the model's transformer blocks in order, stack after stack, with full paths."""
    return [
        _block(model, f"{stack.path}.{index}", family)
        for stack in stacks_of(model, family)
        for index in range(stack.depth(model))
    ]


def head_count(model: nn.Module, attention: Attention) -> int:
    """Return the number of heads that could be removed one by one: key/value heads where queries are grouped."""
    return width_in(model.get_submodule(attention.output)) // attention.head_size


def unit_count(model: nn.Module, block: Block) -> int:
    """Return the width of the block's feed-forward layer."""
    return width_in(model.get_submodule(block.down))


def require_removable_heads(blocks: Iterable[Block]) -> None:
    """Raise FamilyError with the reason when heads of one of the blocks can't be removed."""
    for block in blocks:
        if block.locked:
            raise FamilyError(f"{block.path}: heads can't be removed: {block.locked}")


def embeddings_of(model: nn.Module, family: Family) -> list[str]:
    """Return the full paths of the model's embedding tables."""
    paths = (family.embeddings.word, family.embeddings.position, family.embeddings.token_type)
    prefix = base_prefix(model)
    return [prefix + path for path in paths if path and has_module(model, prefix + path)]


def output_layers(model: nn.Module) -> set[str]:
    """Return the paths of what methods leave in float unless told otherwise.

    The task head's layers that give one number per label, and what can't be stored in another way at all.
    """
    return direct_weights(model) | label_layers(model)


def label_layers(model: nn.Module) -> set[str]:
    """Return the paths of the task head's layers that give one number per label."""
    prefix, labels = base_prefix(model), getattr(getattr(model, "config", None), "num_labels", None)
    return {
        path
        for path, module in model.named_modules()
        if prefix and not path.startswith(prefix) and getattr(module, "out_features", 0) == labels
    }


def direct_weights(model: nn.Module) -> set[str]:
    """Return the paths of layers whose weight the model reads itself: it has to stay a plain matrix of floats."""
    family = _FAMILIES.get(str(getattr(getattr(model, "config", None), "model_type", "")))
    stated = {base_prefix(model) + path for path in family.direct} if family else set()
    return stated | read_directly(model)


def size_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the model's attributes and parameters, outside of layers, whose size follows its heads."""
    family = _FAMILIES.get(str(getattr(getattr(model, "config", None), "model_type", "")))
    if family is None or family.attention is None:
        return frozenset()
    tables = (path.rpartition(".")[2] for path in family.attention.tables)
    return frozenset((*family.attention.counts, *family.attention.widths, *tables))


def has_module(model: nn.Module, path: str) -> bool:
    """Say whether there is a module at `path`."""
    try:
        return isinstance(model.get_submodule(path), nn.Module)
    except AttributeError:
        return False


def channel_widths(model: nn.Module, family: Family) -> dict[str, int | list[int]]:
    """Return what the config keys of a convolutional family would hold, by the layers the model has now."""
    prefix = base_prefix(model)
    found: dict[str, int | list[int]] = {}
    for each in family.channel_keys:
        head, star, _ = f"{prefix}{each.paths[0]}".partition(".*.")
        if not star:
            found[each.key] = _channels(model, [prefix + path for path in each.paths])
            continue
        count = len(list(model.get_submodule(head).children()))
        found[each.key] = [
            _channels(model, [prefix + path.replace("*", str(i)) for path in each.paths]) for i in range(count)
        ]
    return found


def width_in(module: nn.Module) -> int:
    """Return the number of inputs of a layer: `nx` is what GPT-2's Conv1D calls it."""
    return int(getattr(module, "in_features", None) or module.nx)  # type: ignore[arg-type]


def width_out(module: nn.Module) -> int:
    """Return the number of outputs of a layer: `nf` is what GPT-2's Conv1D calls it."""
    return int(getattr(module, "out_features", None) or module.nf)  # type: ignore[arg-type]


def _channels(model: nn.Module, paths: list[str]) -> int:
    layer: Any = model.get_submodule(next(path for path in paths if has_module(model, path)))
    return int(layer.out_channels)


def _block(model: nn.Module, path: str, family: Family) -> Block:
    assert family.attention is not None  # else `stacks_of` has refused it
    ffn = _feed_forward(model, path, family)
    cross = None
    if family.cross is not None and has_module(model, f"{path}.{family.cross.module}"):
        cross = Attention(**_attention(model, path, family.cross))
    return Block(
        path=path,
        up=tuple(f"{path}.{u}" for u in ffn.up),
        down=f"{path}.{ffn.down}",
        norms=tuple(f"{path}.{n}" for n in family.norms),
        cross=cross,
        **_attention(model, path, family.attention),
    )


def _attention(model: nn.Module, block: str, paths: AttentionPaths) -> dict[str, Any]:
    size = int(getattr(model.get_submodule(f"{block}.{paths.module}"), paths.head_size))
    output, key = (model.get_submodule(f"{block}.{p}") for p in (paths.output, paths.key))
    queries = 1 if paths.query == paths.key else width_in(output) // width_out(key)
    return {
        "module": f"{block}.{paths.module}",
        **{name: f"{block}.{getattr(paths, name)}" for name in ("query", "key", "value", "output")},
        "head_size": size * queries,
        "key_size": size,
        "more": tuple(f"{block}.{p}" for p in paths.more if has_module(model, f"{block}.{p}")),
        "tables": tuple(f"{block}.{p}" for p in paths.tables if has_module(model, f"{block}.{p}".rpartition(".")[0])),
        "counts": paths.counts,
        "widths": paths.widths,
        "locked": _locked(model, paths),
    }


def _locked(model: nn.Module, paths: AttentionPaths) -> str:
    for table in paths.shared_tables:
        if has_module(model, base_prefix(model) + table):
            return f"{table} has one column per head for all blocks together"
    return ""


def _feed_forward(model: nn.Module, block: str, family: Family) -> FeedForwardPaths:
    paths = {name for name, _ in model.get_submodule(block).named_modules()}
    for ffn in family.feed_forward:
        if {*ffn.up, ffn.down} <= paths:
            return ffn
    raise FamilyError(f"{block}: none of the feed-forward layouts known for {family.model_type!r} is here")
