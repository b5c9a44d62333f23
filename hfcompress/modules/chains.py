"""The blocks of a model, how one pass calls them, and which of them feed each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from ..core.errors import TargetError
from ..core.targets import matches
from .packable import Obstacle, obstacle, refuse_obstacles, without_obstacles
from .packed import PackedEmbedding, PackedLinear

LINEAR = (nn.Linear, Conv1D, PackedLinear)
Batch = Mapping[str, Any]


def blocks(model: nn.Module) -> list[str]:
    """Return the paths of the model's blocks: the entries of its outermost lists of modules with linear layers inside.

    Asks no family: encoders, decoders and pairs of both are alike in this.
    """
    found: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{block}.") for block in found)
        if isinstance(module, nn.ModuleList) and not inside and len(module) and all(map(_holds_linear, module)):
            found += [f"{path}.{name}" for name, _ in module.named_children()]
    return found


def block_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the linear layers (nn.Linear, GPT-2's Conv1D, packed ones) inside the model's blocks, by path."""
    inside = tuple(f"{block}." for block in blocks(model))
    return [(path, module) for path, module in layers_of(model, LINEAR) if path.startswith(inside)]


def target_layers(
    model: nn.Module,
    targets: Sequence[str] | None,
    kinds: tuple[type[nn.Module], ...],
    where: str,
    *,
    convolutions: bool = False,
    tables_by: str = "",
    why_not: Obstacle = obstacle,
) -> list[tuple[str, nn.Module]]:
    """Return what `targets` choose from: all layers of these kinds, or, without targets, the linear ones in the blocks.

    convolutions: where the blocks hold none, the convolutions instead. why_not: what keeps a layer from being acted on,
    by which those without targets are left out. Raises TargetError where there are none at all, and for targets that
    name convolutions or tables where `kinds` has none; `tables_by`: what takes tables instead.
    """
    others = [] if nn.Conv2d in kinds else layers_of(model, (nn.Conv2d,))
    tables = [] if nn.Embedding in kinds else layers_of(model, (nn.Embedding, PackedEmbedding))
    if targets is not None:
        layers = layers_of(model, kinds)
        for pattern in targets:
            own, *not_ours = (any(matches(pattern, *layer) for layer in group) for group in (layers, others, tables))
            if not own and any(not_ours):
                named, instead = ("convolutions", "") if not_ours[0] else ("embedding tables", tables_by)
                acts = "linear layers" + (" and convolutions" if nn.Conv2d in kinds else "")
                raise TargetError(f"{where}.targets: {pattern!r} names {named}; {where} acts on {acts} only{instead}")
        return layers
    layers = block_layers(model) or (layers_of(model, (nn.Conv2d,)) if convolutions else [])
    if not layers and others:
        raise TargetError(f"{where} acts on linear layers, and the blocks of a {type(model).__name__} are convolutions")
    if not layers:
        raise TargetError(f"{where}: {type(model).__name__} has no blocks with linear layers; name layers in `targets`")
    able = without_obstacles(model, layers, why_not)
    if not able:
        refuse_obstacles(model, layers, why_not)
    return able


def layers_of(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[tuple[str, nn.Module]]:
    """Return the layers of these kinds, by path."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, kinds)]


@dataclass(frozen=True)
class Call:
    """How a module was called: its first input, and everything else."""

    hidden: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Take a call apart; where nothing is positional the first keyword holds the input."""
        values = [*args, *kwargs.values()]
        return cls(values[0], args[1:], kwargs if args else dict(list(kwargs.items())[1:]))

    def same_rest(self, other: Call) -> bool:
        """Say whether two calls differ in nothing but the first input."""
        return _same(self.args, other.args) and _same(self.kwargs, other.kwargs)

    def repeat(self, module: nn.Module) -> Any:
        """Call `module` so, and return the hidden states it gives."""
        return first(module(self.hidden, *self.args, **self.kwargs))


@dataclass(frozen=True)
class Chain:
    """Blocks each of which reads what the one before it gave; `alike` when everything else they get is the same."""

    blocks: list[str]
    alike: bool


def chains(model: nn.Module, batch: Batch, paths: Sequence[str]) -> list[Chain]:
    """Return the chains in which one pass calls the blocks; those called more than once, or never, are in none."""
    order: list[tuple[str, bool, bool]] = []  # path, reads the output of the one before, gets the same rest
    last: list[Any] = [None, None]  # the call before this one, and what it gave

    def before(path: str, call: Call) -> None:
        linked = last[1] is not None and call.hidden is last[1]
        order.append((path, linked, linked and call.same_rest(last[0])))
        last[:] = call, None

    def after(output: Any) -> None:
        last[1] = first(output)

    with hooks(model, paths, before, after):
        model(**batch)
    return _joined(order)


def _joined(order: list[tuple[str, bool, bool]]) -> list[Chain]:
    called = [path for path, _, _ in order]
    found: list[Chain] = []
    for i, (path, linked, alike) in enumerate(order):
        if called.count(path) > 1:
            continue
        if linked and found and found[-1].blocks[-1] == called[i - 1]:
            found[-1] = Chain([*found[-1].blocks, path], found[-1].alike and alike)
        else:
            found.append(Chain([path], True))
    return found


def record(model: nn.Module, batch: Batch, chain: Chain) -> list[Call]:
    """Run the model until the chain begins and return that call.

    Where the chain's blocks are called differently, run to the last and return every call, the later without input.
    """
    paths = chain.blocks[:1] if chain.alike else chain.blocks
    calls: list[Call] = []

    def before(path: str, call: Call) -> None:
        calls.append(replace(call, hidden=None) if calls else call)
        if len(calls) == len(paths):
            raise _Reached

    with contextlib.suppress(_Reached), hooks(model, paths, before):
        model(**batch)
    return calls


class _Reached(Exception):  # noqa: N818 - a signal
    """The rest of the pass is not needed."""


@contextlib.contextmanager
def hooks(
    model: nn.Module,
    paths: Iterable[str],
    before: Callable[[str, Call], Any],
    after: Callable[[Any], Any] | None = None,
) -> Iterator[None]:
    """Call `before` with path and call, and `after` with the output, of the modules `paths` while inside."""
    handles = []
    for path in paths:
        module = model.get_submodule(path)

        def pre(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            before(path, Call.of(args, kwargs))

        handles.append(module.register_forward_pre_hook(pre, with_kwargs=True))
        if after is not None:
            handles.append(module.register_forward_hook(lambda _, __, output: after(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first(output: Any) -> Any:
    """Return the hidden states of what a block gives: it, or the first of it."""
    return output[0] if isinstance(output, tuple | list) else output


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    return isinstance(a, bool | int | float | str) and type(a) is type(b) and a == b


def _holds_linear(module: nn.Module) -> bool:
    return any(child is not module and isinstance(child, LINEAR) for child in module.modules())
