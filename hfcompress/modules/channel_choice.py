"""What channels of convolutions are worth, and which of them go under one budget for the whole network."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import DataError, TargetError
from ..core.foreign_internals import parameters_of
from ..ops.masks import keep_highest
from ..ops.reconstruction import InputMoments, refit
from .channels import ChannelGroup, Channels
from .importance import Batch, loss_of
from .matrix import matrix, set_matrix_

_PARTS = 1000  # steps in which layers that all lose the same share lose more


def ramps(groups: Sequence[ChannelGroup]) -> list[Tensor]:
    """Return scores, by group, as if all groups were worth the same: for a plan, which has no values."""
    return [torch.arange(group.width, 0, -1) / group.width for group in groups]


@torch.no_grad()
def filter_norms(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[Tensor]:
    """Return, by group, the L1 norm of each channel's filters, relative to their mean (Li 2017, section 3.1).

    Where several layers write the channels, their relative norms are added up.
    """

    def one(path: str) -> Tensor:
        norms = matrix(model.get_submodule(path)).abs().sum(1).double().cpu()
        return norms / norms.mean().clamp_min(1e-12)

    return [_mean([one(path) for path in group.writers]) for group in groups]


@torch.no_grad()
def norm_scales(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[Tensor]:
    """Return, by group, |gamma| of the BatchNorms over each channel, a mean where there are several (Liu 2017, 3.2).

    Raises TargetError for a group without one.
    """
    found = []
    for group in groups:
        norms = batch_norms(model, [group])
        if not norms:
            raise TargetError(f"{group.writers[0]}: no BatchNorm follows it, so its channels have no scale to go by")
        found.append(_mean([norm.weight.abs().double().cpu() for norm in norms]))
    return found


def batch_norms(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[nn.BatchNorm2d]:
    """Return the BatchNorms over the channels of these groups."""
    modules = (model.get_submodule(path) for group in groups for path in group.between)
    return [module for module in modules if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def silence_(norms: Iterable[nn.BatchNorm2d], keep: Tensor) -> None:
    """Let these BatchNorms give zero in the channels where `keep` (channels,) is False, as if they were gone."""
    for norm in norms:
        for tensor in (norm.weight, norm.bias):
            tensor[~keep.to(tensor.device)] = 0


@torch.enable_grad()
def taylor_scores(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Iterable[Batch], seed: int
) -> list[Tensor]:
    """Return, by group, (sum of g * w over a channel's parameters)^2, a mean over batches (Molchanov 2019, eq. 8).

    The parameters are scale and shift of the BatchNorms over the channel (section 3.2), or where there are none the
    filters that write it. The loss is that on the batch's labels, see `importance.loss_of`. DataError without batches.
    """
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    owned = [[_tensors(layer) for layer in _scored(model, group)] for group in groups]
    flat = [tensor for layers in owned for tensors in layers for tensor in tensors]
    frozen = [tensor for tensor in flat if not tensor.requires_grad]
    sums, count = [torch.zeros(group.width, dtype=torch.float64) for group in groups], 0
    try:
        for tensor in frozen:
            tensor.requires_grad_(True)
        for batch in batches:
            loss = loss_of(
                model, {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}, generator
            )
            gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True))
            for total, layers in zip(sums, owned, strict=True):
                for tensors in layers:
                    total += (
                        torch.stack([_product(tensor, next(gradients)) for tensor in tensors]).sum(0).square().cpu()
                    )
            count += 1
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)
    if not count:
        raise DataError("there are no calibration batches")
    return [total / count for total in sums]


def choose_channels(
    channels: Channels,
    chosen: Sequence[ChannelGroup],
    scores: Sequence[Tensor],
    *,
    remove: float,
    budget: str,
    scope: str,
    multiple: int,
    least: float,
    where: str,
) -> list[Tensor]:
    """Return which channels of the `chosen` groups stay, so that `remove` of what `budget` counts goes.

    scope "model": those above one score for all groups; "layer": the same share of each. What a group keeps is a
    multiple of `multiple` and at least the share `least`. Raises TargetError when so much cannot go.
    """
    counts = _counter(chosen, scores, scope, multiple, least)
    options = _options(scores, scope)

    def cost(kept: Sequence[int]) -> int:
        if budget == "channels":
            return sum(kept)
        by_group = {id(group): count for group, count in zip(chosen, kept, strict=True)}
        return channels.cost([by_group.get(id(group), group.width) for group in channels.groups], budget)

    whole = cost([group.width for group in chosen])
    place = bisect_left(range(len(options)), True, key=lambda i: cost(counts(options[i])) <= (1 - remove) * whole)
    if place == len(options):
        most = 1 - cost(counts(options[-1])) / whole
        raise TargetError(
            f"{where}: at most {most:.0%} of the {budget} can go with the channels that may be removed; lower it, "
            "`least` or `round_to`, or let `residual` channels go too"
        )
    return [keep_highest(score, count) for score, count in zip(scores, counts(options[place]), strict=True)]


@torch.no_grad()
def refit_readers_(
    model: nn.Module, kept: Sequence[tuple[ChannelGroup, Tensor]], batches: Iterable[Batch], ridge: float
) -> None:
    """Refit, in place, the layers that read these groups to do without the channels where a mask is False.

    By least squares on what they give in the network as it is, see `ops.reconstruction.refit`; the columns themselves
    stay, as zeros. DataError for a layer that no batch reaches.
    """
    masks = {path: keep for group, keep in kept for path in group.readers}
    moments = _input_moments(model, list(masks), batches)
    for path, keep in masks.items():
        layer: Any = model.get_submodule(path)
        weight = matrix(layer)
        columns = keep.repeat_interleave(weight.shape[1] // len(keep)).to(weight.device)
        new, bias = refit(weight, layer.bias, columns, moments.pop(path).matrix, ridge)
        set_matrix_(layer, new)
        if bias is not None:
            layer.bias.copy_(bias)


def _input_moments(model: nn.Module, paths: Sequence[str], batches: Iterable[Batch]) -> dict[str, InputMoments]:
    found: dict[str, InputMoments] = {}

    def hook(path: str) -> Any:
        def before(layer: Any, args: tuple[Tensor, ...]) -> None:
            if path not in found:
                found[path] = InputMoments(matrix(layer).shape[1], args[0].device)
            found[path].add(_columns(layer, args[0]))

        return before

    handles = [model.get_submodule(path).register_forward_pre_hook(hook(path)) for path in paths]
    try:
        for batch in batches:
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    if missed := [path for path in paths if path not in found]:
        raise DataError(f"{missed[0]} is never reached by the calibration batches")
    return found


def _columns(layer: Any, x: Tensor) -> Tensor:
    """Return what each output of a layer is computed from: (places, columns of its matrix)."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return unfolded.transpose(1, 2).flatten(0, 1)


def _options(scores: Sequence[Tensor], scope: str) -> list[float]:
    """Return thresholds, or shares to remove, from the one that removes nothing to the one that removes most."""
    if scope == "layer":
        return [i / _PARTS for i in range(_PARTS + 1)]
    return [-1.0, *torch.cat([s.double() for s in scores]).sort().values.tolist()]


def _counter(
    groups: Sequence[ChannelGroup], scores: Sequence[Tensor], scope: str, multiple: int, least: float
) -> Callable[[float], list[int]]:
    def count(group: ChannelGroup, score: Tensor, option: float) -> int:
        kept = round(group.width * (1 - option)) if scope == "layer" else int((score > option).sum())
        kept = max(kept, round(least * group.width), 1)
        return min(group.width, -(-kept // multiple) * multiple)

    return lambda option: [count(group, score, option) for group, score in zip(groups, scores, strict=True)]


def _scored(model: nn.Module, group: ChannelGroup) -> list[nn.Module]:
    return list(batch_norms(model, [group])) or [model.get_submodule(path) for path in group.writers]


def _tensors(layer: nn.Module) -> list[nn.Parameter]:
    return [p for name in ("weight", "bias") if (p := parameters_of(layer).get(name)) is not None]


def _product(tensor: Tensor, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        return torch.zeros(len(tensor), dtype=torch.float64, device=tensor.device)
    return (
        (tensor.detach() * gradient).double().flatten(1).sum(1)
        if tensor.ndim > 1
        else (tensor.detach() * gradient).double()
    )


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).mean(0)
