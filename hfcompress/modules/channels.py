"""Channels of convolutions that have to go together: which layers write and read them, and their removal."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import HFCompressError, TargetError
from ..core.foreign_internals import AnyBatchNorm, buffers_of, parameters_of
from .adapted import Adapted
from .factorized import Factorized
from .separable import SeparableConv2d
from .sized import follow_
from .storage import Packed

_NORMS = (AnyBatchNorm, nn.LayerNorm)
_SPATIAL = ("weight", "bias", "running_mean", "running_var")


@dataclass
class ChannelGroup:
    """Channels that only leave together: tensors of several layers run over them, and sums join their outputs."""

    width: int
    writers: list[str] = field(default_factory=list)  # layers whose outputs they are
    readers: list[str] = field(default_factory=list)  # layers whose inputs they are
    between: list[str] = field(default_factory=list)  # norms, and convolutions of every channel by itself
    bare: list[str] = field(default_factory=list)  # parameters of modules that are no layers

    @property
    def residual(self) -> bool:
        """Whether outputs of several layers are added up in them."""
        return len(self.writers) > 1

    @property
    def layers(self) -> list[str]:
        """Every layer that has a dimension over them."""
        return [*self.writers, *self.between, *self.readers]


@dataclass(frozen=True)
class Work:
    """What one layer costs: weights per pair of an input and an output channel, and where it is applied, per image."""

    kernel: int
    positions: int
    inputs: int
    outputs: int
    depthwise: bool

    def macs(self, inputs: int, outputs: int) -> int:
        """Return multiplications per image with so many channels."""
        return self.weights(inputs, outputs) * self.positions

    def weights(self, inputs: int, outputs: int) -> int:
        """Return weights with so many channels."""
        return self.kernel * outputs * (1 if self.depthwise else inputs)


@dataclass(frozen=True)
class Channels:
    """The groups of channels of one network, and what its convolutions and linear layers cost."""

    groups: list[ChannelGroup]
    work: dict[str, Work]

    def cost(self, kept: Sequence[int], unit: str) -> int:
        """Return what the network costs when so many channels of each group stay; unit: parameters or flops."""
        sizes = {path: [work.inputs, work.outputs] for path, work in self.work.items()}
        for group, count in zip(self.groups, kept, strict=True):
            for path in group.writers:
                sizes[path][1] = count
            for path in group.readers:
                sizes[path][0] = count
            for path in group.between:
                if path in sizes:
                    sizes[path] = [count, count]
        act = Work.macs if unit == "flops" else Work.weights
        return sum(act(self.work[path], *pair) for path, pair in sizes.items())


def channels_of(model: nn.Module, image_size: int | tuple[int, int]) -> Channels:
    """Find the groups, from one pass over an image of this size; the model's outputs are in none.

    Raises TargetError for a model with layers that are packed, split or adapted, HFCompressError without the library
    that finds what depends on what.
    """
    _refuse_made_over(model)
    twin = copy.deepcopy(model).to("meta").eval().requires_grad_(True)
    pixels = example_pixels(twin, image_size)
    work = _measure(twin, pixels)
    groups = [_group(items) for items in _coupled(twin, pixels)]
    found = [group for group in groups if group.readers and group.width > 1]
    for group in found:
        for path in group.layers:
            if path in work and work[path].kernel < 0:
                raise TargetError(
                    f"{path}: a convolution in groups of several channels can't be cut; name it in `ignore`"
                )
    return Channels(found, work)


def example_pixels(model: nn.Module, image_size: int | tuple[int, int]) -> Tensor:
    """Return a random image as the model takes it, in its dtype and on its device."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    config: Any = model.config
    weight = next(model.parameters())
    return torch.randn(1, config.num_channels, height, width, device=weight.device).to(weight.dtype)


@torch.no_grad()
def keep_channels_of_(model: nn.Module, group: ChannelGroup, keep: Tensor) -> None:
    """Keep the channels of a group where `keep` (width,) is True, in place; modules stay the objects they are."""
    index = keep.cpu().nonzero().flatten()
    for path in dict.fromkeys(group.layers):
        module = model.get_submodule(path)
        if path in group.readers:
            _cut_(module, "weight", 1, index)
        if path not in group.readers or path in group.writers:
            for name in _SPATIAL:
                _cut_(module, name, 0, index)
        follow_(module)
    for name in group.bare:
        owner, _, last = name.rpartition(".")
        _cut_(model.get_submodule(owner), last, 0, index)


def _cut_(module: nn.Module, name: str, dim: int, index: Tensor) -> None:
    old: Tensor | None = parameters_of(module).get(name, buffers_of(module).get(name))
    if old is None:
        return
    new = old.detach().index_select(dim, index.to(old.device)).contiguous()
    if name in buffers_of(module):
        buffers_of(module)[name] = new
    else:
        parameters_of(module)[name] = nn.Parameter(new, requires_grad=old.requires_grad)


def _refuse_made_over(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, Packed | Factorized | Adapted | SeparableConv2d):
            raise TargetError(
                f"{path}: a {type(module).__name__} can't be cut; remove channels before layers are packed or split"
            )


# ------------------------------------------------------------------ what depends on what


@dataclass(frozen=True)
class _Item:
    """One tensor dimension that a group of channels runs over."""

    path: str
    module: Any
    reads: bool


def _coupled(twin: nn.Module, pixels: Tensor) -> Iterator[list[_Item]]:
    """Yield, per group of coupled channels, the layers and parameters with a dimension over them (DepGraph, Fang 2023).

    Which these are is all that is asked of the library; TargetError for a layer that it could cut and we could not.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise HFCompressError("pruning channels needs torch-pruning: pip install torch-pruning") from error
    graph = torch_pruning.DependencyGraph()
    with torch.enable_grad():
        graph.build_dependency(twin, pixels, forward_fn=lambda model, x: model(x).logits, verbose=False)
    names = {id(thing): name for name, thing in (*twin.named_modules(), *twin.named_parameters())}
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        yield [item for dependency, index in group for item in _item(dependency, list(index), names)]


def _item(dependency: Any, index: list[int], names: Mapping[int, str]) -> Iterator[_Item]:
    module = dependency.target.module
    if id(module) not in names:  # a sum, a reshaping: nothing to cut
        return
    path, reads = names[id(module)], dependency.handler.__name__ == "prune_in_channels"
    if isinstance(module, nn.Parameter):
        plain = module.ndim == 1
    elif isinstance(module, nn.Conv2d | nn.Linear | _NORMS[0] | _NORMS[1]):
        plain = True
    elif any(True for _ in module.parameters()):
        plain = False
    else:
        return  # an activation, pooling
    if not plain or index != list(range(len(index))):
        raise TargetError(f"{path}: how its {type(module).__name__} joins channels is not known here; can't be cut")
    yield _Item(path, module, reads)


def _group(items: Sequence[_Item]) -> ChannelGroup:
    found: dict[str, list[str]] = {"writers": [], "readers": [], "between": [], "bare": []}
    width = 0
    for item in items:
        role = _role(item)
        if item.path not in found[role]:
            found[role].append(item.path)
        if role != "readers" and isinstance(item.module, nn.Conv2d | nn.Linear):
            width = item.module.weight.shape[0]
    return ChannelGroup(width, **found)


def _role(item: _Item) -> str:
    if isinstance(item.module, nn.Parameter):
        return "bare"
    if isinstance(item.module, _NORMS) or _depthwise(item.module):
        return "between"
    return "readers" if item.reads else "writers"


def _depthwise(module: Any) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def _measure(twin: nn.Module, pixels: Tensor) -> dict[str, Work]:
    """Return what every convolution and linear layer costs; a kernel below zero: its groups are not known here."""
    found: dict[str, Work] = {}

    def hook(path: str) -> Any:
        def after(layer: Any, _: Any, output: Tensor) -> None:
            outputs, inner = layer.weight.shape[:2]
            depthwise = _depthwise(layer)
            kernel = layer.weight[0, 0].numel()
            if getattr(layer, "groups", 1) != 1 and not depthwise:
                kernel = -kernel
            inputs = outputs if depthwise else inner
            found[path] = Work(kernel, output.numel() // outputs, inputs, outputs, depthwise)

        return after

    layers = [(p, m) for p, m in twin.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_hook(hook(path)) for path, module in layers]
    try:
        with torch.no_grad():
            twin(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return found
