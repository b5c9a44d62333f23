"""Transformer blocks taken out of the stack they are in: for the time being, or for good."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import FamilyError, TargetError
from ..core.families import Family, Stack, stacks_of
from .merging import give_back_in_, passed_on
from .seen import token_mask
from .ties import own_ties


class Skip:
    """Stands for a block's forward; while `on`, the hidden state passes unchanged and nothing is computed."""

    def __init__(self, block: nn.Module, returns: tuple[int | None, ...] | None) -> None:
        self.block, self.returns, self.on = block, returns, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the block returns, or the hidden state in that form."""
        if not self.on:
            return type(self.block).forward(self.block, *args, **kwargs)
        hidden = passed_on(self.block, hidden_state(args, kwargs))
        if self.returns is None:
            return hidden
        return (hidden, *(None if i is None else args[i] for i in self.returns))


def hidden_state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the hidden state (batch, length, width) a block was called with."""
    return args[0] if args else kwargs["hidden_states"]


@torch.no_grad()
def block_influence(
    model: nn.Module, paths: Sequence[str], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, float]:
    """Return by how much each block changes the hidden state: 1 - cosine similarity, a mean over real tokens.

    Block influence of Men 2024, eq. 1.
    """
    total, count = dict.fromkeys(paths, 0.0), dict.fromkeys(paths, 0.0)
    mask: Tensor | None = None

    def record(path: str, args: Any, kwargs: Any, output: Any) -> None:
        before, after = hidden_state(args, kwargs), output[0] if isinstance(output, tuple) else output
        if before.shape != after.shape:
            raise TargetError(
                f"{path} merges tokens, so that what it changes can't be told: measure blocks before that"
            )
        change = 1 - F.cosine_similarity(before.float(), after.float(), dim=-1)
        weight = torch.ones_like(change) if mask is None or mask.shape != change.shape else mask.to(change)
        total[path] += float((change * weight).sum())
        count[path] += float(weight.sum())

    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _, args, kwargs, output, path=path: record(path, args, kwargs, output), with_kwargs=True
        )
        for path in paths
    ]
    try:
        for batch in batches:
            mask = token_mask(batch)
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: total[path] / max(count[path], 1.0) for path in paths}


def make_skippable_(model: nn.Module, path: str, family: Family) -> Skip:
    """Let the block at `path` be skipped from now on, and return the switch; `restore_` takes it off again."""
    block = model.get_submodule(path)
    skip = Skip(block, family.depth.returns)
    block.forward = skip
    return skip


def restore_(model: nn.Module, path: str) -> None:
    """Give the block at `path` its own forward back."""
    vars(model.get_submodule(path)).pop("forward", None)


def droppable_stacks(model: nn.Module, family: Family) -> list[Stack]:
    """Return the stacks blocks can be dropped from; FamilyError with the reason where none can."""
    reasons = [family.depth.refused] + [why for key, why in family.depth.refused_if if getattr(model.config, key, None)]
    if any(reasons):
        raise FamilyError(f"no block can be dropped: {next(filter(None, reasons))}")
    return stacks_of(model, family)


def keep_blocks_(model: nn.Module, family: Family, stack: Stack, keep: Sequence[int]) -> None:
    """Keep the blocks `keep` of one stack, in order, and make the config say so: then it is a smaller stock model.

    Raises TargetError for blocks that share parameters, whose names would change.
    """
    if any(name.startswith(f"{stack.path}.") for name in own_ties(model)):
        raise TargetError(f"{stack.path}: its blocks share parameters; drop blocks before sharing them")
    blocks = list(model.get_submodule(stack.path).children())
    model.set_submodule(stack.path, nn.ModuleList(blocks[i] for i in keep))
    give_back_in_(blocks[keep[-1]])
    for index, old in enumerate(keep):
        for module in blocks[old].modules():
            if type(getattr(module, "layer_idx", None)) is int:
                module.layer_idx = index  # type: ignore[assignment]  # where its keys and values lie in the cache
    _count_in_config_(model.config, family, stack, keep)
    owner: Any = getattr(model.get_submodule(stack.path.rpartition(".")[0]), "config", model.config)
    if owner is not model.config:  # an encoder or decoder with a config of its own
        owner.num_hidden_layers = len(keep)


def _count_in_config_(config: Any, family: Family, stack: Stack, keep: Sequence[int]) -> None:
    if stack.index is not None:
        counts = list(getattr(config, stack.key))
        counts[stack.index] = len(keep)
        setattr(config, stack.key, counts)
        return
    setattr(config, stack.key, len(keep))
    for key in family.depth.lists:
        setattr(config, key, [getattr(config, key)[i] for i in keep])
    if hasattr(config, "stage_names"):  # a model for images that can serve as a backbone names its blocks
        config.stage_names = config.stage_names[: len(keep) + 1]
        config.set_output_features_output_indices(out_features=None, out_indices=None)
