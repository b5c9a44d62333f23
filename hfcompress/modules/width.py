"""The width of the residual stream: which dimensions run over its channels, what each is worth, and their removal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..core.errors import DataError, FamilyError, TargetError
from ..core.families import Block, base_prefix, blocks_of, has_module, output_layers, width_in
from ..core.family import Family
from ..core.foreign_internals import AnyConvolution, parameters_of
from .adapted import Adapted
from .chains import first
from .factorized import Factorized
from .importance import Batch, loss_of
from .seen import token_mask
from .sized import follow_
from .storage import Packed
from .ties import own_ties

_READS, _WRITES = "reads", "writes"  # what a projection of a block does with the residual stream


@dataclass(frozen=True)
class Axis:
    """A dimension of one parameter that runs over the channels of the residual stream, `times` in a row."""

    path: str  # of the module
    name: str  # of its parameter
    dim: int
    times: int = 1


def stream_width(model: nn.Module, blocks: Sequence[Block]) -> int:
    """Return the number of channels all blocks read; FamilyError when they do not read the same."""
    widths = sorted({width_in(model.get_submodule(block.query)) for block in blocks})
    if len(widths) > 1:
        raise FamilyError(
            "no channel of the residual stream can be removed: its width differs by stage "
            f"({', '.join(map(str, widths))})"
        )
    return widths[0]


def stream_axes(model: nn.Module, family: Family) -> list[Axis]:
    """Return every dimension that runs over the channels of the residual stream.

    That is every one of its size, except the inner ones of attention and feed-forward layers, rows of embedding tables
    and of the layer that gives one number per label or token; of parameters outside of layers only the last. Raises
    TargetError for a packed layer, FamilyError with the reason where the rule does not hold.
    """
    blocks = blocks_of(model, family)
    _refuse_packed(model)
    for name in own_ties(model):
        raise TargetError(f"{name}: it is shared with another layer; remove channels before sharing layers")
    width = stream_width(model, blocks)
    if getattr(model.config, "num_labels", None) == width:
        raise FamilyError(f"there are as many labels as channels ({width}): which of them a layer gives can't be told")
    rule = _Rule(width, _roles(blocks), _own(blocks), tuple(f"{b.path}." for b in blocks), _last_layers(model))
    return [axis for path, module in model.named_modules() for axis in rule.axes(path, module)]


@torch.no_grad()
def keep_channels_(model: nn.Module, axes: Iterable[Axis], keep: Tensor) -> None:
    """Keep the channels where `keep` (width,) is True, in place; modules stay the objects they are, ties stay ties."""
    named: dict[tuple[str, str], list[Axis]] = {}
    for axis in axes:
        named.setdefault((axis.path, axis.name), []).append(axis)
    made: dict[Tensor, nn.Parameter] = {}  # tensors are told apart by identity
    index = keep.cpu().nonzero().flatten()
    for (path, name), dims in named.items():
        module = model.get_submodule(path)
        old: Any = parameters_of(module)[name]
        if old not in made:
            made[old] = _cut(old, dims, index, len(keep))
        parameters_of(module)[name] = made[old]
        follow_(module)


def magnitudes(model: nn.Module, axes: Iterable[Axis], width: int) -> Tensor:
    """Return, by channel, the mean absolute weight over all axes, each relative to its mean over channels."""
    total = torch.zeros(width, dtype=torch.float64)
    for axis in axes:
        weight: Any = parameters_of(model.get_submodule(axis.path))[axis.name]
        if weight.is_meta:  # which would go is not known, how many would is
            return torch.arange(width, 0, -1, dtype=torch.float64)
        values = weight.detach().double().abs().movedim(axis.dim, 0).reshape(axis.times, width, -1)
        per_channel = values.mean((0, 2)).cpu()
        total += per_channel / per_channel.mean().clamp_min(1e-12)
    return total


@torch.no_grad()
def activations(model: nn.Module, paths: Sequence[str], batches: Iterable[Batch]) -> Tensor:
    """Return, by channel, the mean |h| over tokens of what the modules `paths` give.

    Each module's is relative to its mean over channels, so that all count alike although a stream without norms grows
    from block to block. Padding does not count. DataError without batches.
    """
    sums: dict[str, Tensor] = {}
    for path, tokens in hidden_tokens(model, paths, batches):
        sums[path] = sums.get(path, 0) + tokens.abs().sum(0).cpu()
    return _summed([total / total.mean().clamp_min(1e-12) for total in sums.values()])


def hidden_tokens(model: nn.Module, paths: Sequence[str], batches: Iterable[Batch]) -> Iterator[tuple[str, Tensor]]:
    """Yield the path and the output (tokens, width), in float64, of every call of the modules; padding is left out."""
    for batch in _on(model, batches):
        with _outputs(model, paths) as outputs:
            model(**batch)
        yield from ((path, _tokens(hidden, batch)) for path, hidden in outputs)


@torch.enable_grad()
def sensitivities(model: nn.Module, paths: Sequence[str], batches: Iterable[Batch], seed: int) -> Tensor:
    """Return, by channel, |h * dL/dh| summed over tokens of what the modules `paths` give (Molchanov 2019, eq. 8).

    L is the loss on the batch's labels; where there are none, see `importance.fisher`. DataError without batches.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: list[Tensor] = []
    for batch in _on(model, batches):
        with _outputs(model, paths, gradients=True) as outputs:
            loss = loss_of(model, batch, generator)
        gradients = torch.autograd.grad(loss, [hidden for _, hidden in outputs], allow_unused=True)
        pairs = zip(outputs, gradients, strict=True)
        sums += [_tokens(hidden * g, batch).abs().sum(0).cpu() for (_, hidden), g in pairs if g is not None]
    return _summed(sums)


def stream_norms(model: nn.Module, family: Family) -> list[str]:
    """Return the paths of the norms that read or write the residual stream."""
    outer = [base_prefix(model) + path for path in family.outer_norms]
    inner = [path for block in blocks_of(model, family) for path in block.norms]
    return [path for path in (*outer, *inner) if has_module(model, path)]


@dataclass(frozen=True)
class _Rule:
    """Says which dimensions of a module are the residual stream's."""

    width: int
    roles: Mapping[str, str]  # of the projections the family names
    own: tuple[tuple[str, ...], tuple[str, ...]]  # attention modules, and the norms in or beside them
    blocks: tuple[str, ...]
    last: frozenset[str]  # layers whose outputs are labels or tokens

    def axes(self, path: str, module: nn.Module) -> Iterator[Axis]:
        """Yield the axes of a module's own parameters."""
        role = self.roles.get(path)
        if role is None and isinstance(module, nn.Linear | Conv1D) and path.startswith(self.blocks):
            if self.width in module.weight.shape:
                raise FamilyError(f"{path}: what this layer of a block reads and writes is not described")
            return
        if isinstance(module, nn.Linear | Conv1D):
            yield from self._linear(path, module, role)
        elif isinstance(module, AnyConvolution):
            yield from self._convolution(path, module)
        elif not self._inside_attention(path):
            yield from self._bare(path, module)

    def _linear(self, path: str, module: Any, role: str | None) -> Iterator[Axis]:
        turned = isinstance(module, Conv1D)
        columns, rows = width_in(module), module.weight.shape[1 if turned else 0]
        times = columns // self.width if path in self.last and columns % self.width == 0 else 1
        if role != _WRITES and columns == times * self.width:
            yield Axis(path, "weight", 0 if turned else 1, times)
        if role != _READS and rows == self.width and path not in self.last:
            yield Axis(path, "weight", 1 if turned else 0)
            if module.bias is not None:
                yield Axis(path, "bias", 0)

    def _convolution(self, path: str, module: Any) -> Iterator[Axis]:
        dims = [dim for dim in (0, 1) if module.weight.shape[dim] == self.width]
        if (dims or self.width in (module.in_channels, module.out_channels)) and (
            module.groups != 1 or module.transposed
        ):
            raise FamilyError(f"{path}: a grouped or transposed convolution over the residual stream can't be cut")
        yield from (Axis(path, "weight", dim) for dim in dims)
        if 0 in dims and module.bias is not None:
            yield Axis(path, "bias", 0)

    def _bare(self, path: str, module: nn.Module) -> Iterator[Axis]:
        buffers = (b for b in module.buffers(recurse=False) if b.is_floating_point() and b.ndim)
        if any(buffer.shape[-1] == self.width for buffer in buffers):
            raise FamilyError(f"{path}: a {type(module).__name__} keeps statistics of channels and can't be cut")
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim and parameter.shape[-1] == self.width:
                yield Axis(path, name, parameter.ndim - 1)

    def _inside_attention(self, path: str) -> bool:
        attentions, norms = self.own
        return path not in norms and any(path == a or path.startswith(f"{a}.") for a in attentions)


def _roles(blocks: Iterable[Block]) -> dict[str, str]:
    roles: dict[str, str] = {}
    for block in blocks:
        for attention in (block, block.cross):
            if attention is not None:
                roles |= dict.fromkeys((attention.query, attention.key, attention.value, *attention.more), _READS)
                roles[attention.output] = _WRITES
        roles |= dict.fromkeys(block.up, _READS)
        roles[block.down] = _WRITES
    return roles


def _own(blocks: Iterable[Block]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    blocks = list(blocks)
    attentions = tuple(a.module for block in blocks for a in (block, block.cross) if a is not None)
    return attentions, tuple(norm for block in blocks for norm in block.norms)


def _last_layers(model: Any) -> frozenset[str]:
    tokens = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return frozenset(output_layers(model) | {p for p, m in model.named_modules() if tokens is not None and m is tokens})


def _refuse_packed(model: nn.Module) -> None:
    for path, module in model.named_modules():
        weight = parameters_of(module).get("weight")
        if isinstance(module, Factorized | Adapted):
            raise TargetError(
                f"{path}: a {type(module).__name__} can't be cut; remove channels before layers are split or adapted"
            )
        if isinstance(module, Packed) or (weight is not None and not weight.is_floating_point()):
            raise TargetError(
                f"{path}: a {type(module).__name__} can't be cut; remove channels before layers are packed"
            )


def _cut(old: nn.Parameter, dims: Iterable[Axis], index: Tensor, width: int) -> nn.Parameter:
    new: Tensor = old
    for axis in dims:
        every = torch.cat([index + i * width for i in range(axis.times)])
        new = new.index_select(axis.dim, every.to(new.device))
    return nn.Parameter(new.detach().contiguous(), requires_grad=old.requires_grad)


@contextlib.contextmanager
def _outputs(model: nn.Module, paths: Sequence[str], *, gradients: bool = False) -> Iterator[list[tuple[str, Tensor]]]:
    """Collect (path, hidden state) of every call of the modules while inside; `gradients`: they can be had of each."""
    found: list[tuple[str, Tensor]] = []

    def hook(path: str) -> Any:
        def after(_: nn.Module, __: Any, output: Any) -> Any:
            hidden = first(output)
            if gradients:  # a graph begins here even where no parameter trains
                hidden = output = hidden + torch.zeros_like(hidden, requires_grad=True)
            found.append((path, hidden))
            return output

        return after

    handles = [model.get_submodule(path).register_forward_hook(hook(path)) for path in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _on(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    device = next(model.parameters()).device
    for batch in batches:
        yield {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _tokens(values: Tensor, batch: Batch) -> Tensor:
    """Return `values` (…, width) as (tokens, width) without padding."""
    mask, values = token_mask(batch), values.detach().double()
    if mask is not None and mask.shape == values.shape[:-1]:
        return values[mask.bool()]
    return values.flatten(0, -2)


def _summed(parts: Sequence[Tensor]) -> Tensor:
    if not parts:
        raise DataError("there are no calibration batches")
    return torch.stack(list(parts)).sum(0)
