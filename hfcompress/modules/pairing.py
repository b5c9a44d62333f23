"""What two models must have in common to be compared layer by layer, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

from torch import Tensor, nn

from ..core.errors import FamilyError, LifecycleError
from ..core.families import Attention, blocks_of, family_of, head_count, width_in
from ..core.layer_map import Pairs
from .capture import vector_widths
from .tables import input_embeddings

_SHOWN = 4


def require_same(model: Any, teacher: Any, key: str, what: str, where: str) -> None:
    """Raise LifecycleError when a key of the two configs differs; `what` is its name in plain words."""
    ours, theirs = getattr(model.config, key, None), getattr(teacher.config, key, None)
    if ours != theirs:
        raise LifecycleError(f"{where}: teacher and model have different {what}: {theirs} and {ours}")


def require_same_labels(model: Any, teacher: Any, where: str) -> None:
    """Raise LifecycleError that shows which labels differ, or their order; those without names may mean anything."""
    require_same(model, teacher, "num_labels", "numbers of labels", where)
    ours, theirs = _names(model.config), _names(teacher.config)
    if ours and theirs and ours != theirs:
        raise LifecycleError(f"{where}: teacher and model have different labels: {_difference(theirs, ours)}")


def hidden_widths(model: Any) -> list[int]:
    """Return the widths of hidden states, each once: one number, but for models that widen stage by stage.

    None of those whose config does not say it in one number, as of convolutional networks.
    """
    try:
        blocks = blocks_of(model, family_of(model))
    except FamilyError:
        width = getattr(model.config, "hidden_size", None)
        return [width] if isinstance(width, int) else []
    return sorted({width_in(model.get_submodule(block.query)) for block in blocks})


def token_tables(model: Any, teacher: Any) -> tuple[Tensor, Tensor] | None:
    """Return both models' tables of the same tokens, as wide as their hidden states; None where they have none such."""
    tables = [input_embeddings(m) for m in (model, teacher)]
    widths = [hidden_widths(m) for m in (model, teacher)]
    for table, width in zip(tables, widths, strict=True):
        if type(table) is not nn.Embedding or [table.embedding_dim] != width or table.weight.is_meta:
            return None
    weights = [table.weight.detach() for table in tables]
    return (weights[0], weights[1]) if len(weights[0]) == len(weights[1]) else None


def depth_of(model: Any) -> int | None:
    """Return how many layers the model's outputs count; None where it isn't one number of its config."""
    try:
        key = family_of(model).depth.keys[0]
    except FamilyError:
        key = "num_hidden_layers"
    depth = getattr(model.config, key, None)
    return depth if isinstance(depth, int) else None


def attentions_of(model: nn.Module) -> Sequence[Attention]:
    """Return the attention of every layer in order, as often as it is run."""
    blocks, depth = blocks_of(model, family_of(model)), depth_of(model)
    return blocks * depth if len(blocks) == 1 and depth is not None else blocks  # one block for all layers


def require_same_heads(
    model: nn.Module,
    teacher: nn.Module,
    ours: Sequence[Attention],
    theirs: Sequence[Attention],
    pairs: Pairs,
    where: str,
) -> None:
    """Raise LifecycleError when layers that meet have different numbers of attention heads."""
    for s, t in pairs:
        counts = [_heads(m, a) for m, a in ((teacher, theirs[t]), (model, ours[s]))]
        if counts[0] != counts[1]:
            key = where.rpartition(".")[2]
            raise LifecycleError(
                f"{where}: layer {t} of the teacher has {counts[0]} heads, layer {s} of the model {counts[1]}; set "
                f"`{key}: {{weight: 0.1, heads: mean}}`, or compare relations of queries, keys and values, which may "
                "differ"
            )


def relation_heads(
    model: nn.Module,
    teacher: nn.Module,
    ours: Sequence[Attention],
    theirs: Sequence[Attention],
    pairs: Pairs,
    wanted: int | None,
    where: str,
    *,
    crossed: bool = False,
) -> int:
    """Return into how many heads to cut the widths of queries, keys and values: `wanted`, or the teacher's own number.

    crossed: queries are to meet keys. Raises LifecycleError with the valid numbers when one of the widths cannot be cut
    so, and where queries that share a key are to meet it.
    """
    heads = wanted or _heads(teacher, theirs[pairs[-1][1]])
    found = [vector_widths(m, a) for s, t in pairs for m, a in ((model, ours[s]), (teacher, theirs[t]))]
    if crossed and (shared := next((w for w in found if w["query"] != w["key"]), None)):
        raise LifecycleError(
            f"{where}.of: heads share their keys here, so {shared['query']} numbers of a query meet {shared['key']} of "
            "a key; leave query_key out (query, key and value have relations of their own)"
        )
    widths = {width for kinds in found for width in kinds.values()}
    if any(width % heads for width in widths):
        common = gcd(*widths)
        valid = [str(n) for n in range(1, common + 1) if common % n == 0]
        raise LifecycleError(
            f"{where}.heads: widths of {', '.join(map(str, sorted(widths)))} can't be cut into {heads} heads; set "
            f"one of {', '.join(valid)}"
        )
    return heads


def _heads(model: nn.Module, attention: Attention) -> int:
    """Return the number of query heads."""
    return head_count(model, attention) * (attention.head_size // attention.key_size)


def _names(config: Any) -> list[str]:
    """Return the label names in order; none when they are the numbers transformers makes up."""
    named: Mapping[int, str] = getattr(config, "id2label", None) or {}
    names = [str(named[i]) for i in sorted(named)]
    return [] if names == [f"LABEL_{i}" for i in range(len(names))] else names


def _difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    if set(theirs) == set(ours):
        i = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        return f"the same names in another order; number {i} is {theirs[i]!r} and {ours[i]!r}"
    parts = [(a, set(a) - set(b)) for a, b in ((theirs, ours), (ours, theirs))]
    shown = [
        ", ".join(repr(n) for n in sorted(only)[:_SHOWN]) + (" …" if len(only) > _SHOWN else "") for _, only in parts
    ]
    return f"only the teacher has {shown[0]}; only the model has {shown[1]}"
