"""Calibration block by block: statistics, compression, and the inputs of the next, with one block at work at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..core.errors import DataError
from ..core.progress import track
from .chains import Batch, Chain, blocks, chains, hooks, record
from .seen import token_mask
from .storage import Packed


class Statistic(Protocol):
    """What is summed over a layer's inputs."""

    def add(self, x: Tensor) -> None:
        """Take in inputs (tokens, columns)."""


S = TypeVar("S", bound=Statistic)
New = Callable[[int, torch.device], S]  # (columns, device) -> an empty statistic
Compress = Callable[[list[str], S], None]  # acts on layers that read the same inputs
Runs = Sequence[tuple[Batch, Callable[[], Any]]]  # each batch with its pass through a block, or through the model


@torch.no_grad()
def walk_(
    model: nn.Module, batches: Iterable[Batch], paths: Sequence[str], new: New[S], compress: Compress[S], title: str
) -> None:
    """Compress the layers `paths` block by block, each on what the compressed ones before it give.

    Per block: run it to sum a statistic over each layer's inputs (layers with the same input share one; padding, where
    a batch has an `attention_mask`, is left out), hand it to `compress`, and run the block again for the inputs of the
    next. Beside the model that takes the batches' hidden states, in the model's dtype, and one block's statistics.
    Layers outside of blocks come last, from passes through the whole model, as do those of blocks that are called more
    than once. `title` says in reports of progress what is going on. Raises DataError when there are no batches or a
    layer is never reached.
    """
    with _inference(model):
        batches = _on_device(model, batches)
        _require_reached(model, batches, paths)
        found = _needed(chains(model, batches[0], blocks(model)), paths)
        walked = tuple(f"{block}." for chain in found for block in chain.blocks)
        rest = [p for p in paths if not p.startswith(walked)]
        work = _Work(model, new, compress, title)
        for chain in track([*found, None] if rest else found, lambda _: title):
            if chain is not None:
                _walk_chain(batches, chain, [p for p in paths if p not in rest], work)
            else:
                work.compress_all(work.observe(rest, [(batch, partial(model, **batch)) for batch in batches]))


def observe_all(
    model: nn.Module, batches: Iterable[Batch], paths: Sequence[str], new: New[S], title: str
) -> dict[str, S]:
    """Return a statistic for each of the layers `paths`, all from the same passes through the unchanged model.

    Layers that read the same inputs share one; padding is left out. Raises DataError as `walk_` does.
    """
    with torch.no_grad(), _inference(model):
        runs = [(batch, partial(model, **batch)) for batch in _on_device(model, batches)]
        found = _Work(model, new, lambda *_: None, title).observe(paths, runs)
    return {path: statistic for layers, statistic in found.items() for path in layers}


@torch.no_grad()
def require_reached(model: nn.Module, batches: Iterable[Batch], paths: Sequence[str]) -> None:
    """Raise DataError, before anything is changed, for layers that no calibration batch reaches."""
    with _inference(model):
        _require_reached(model, _on_device(model, batches), paths)


def _require_reached(model: nn.Module, batches: Sequence[Batch], paths: Sequence[str]) -> None:
    left = dict.fromkeys(paths)
    for batch in batches:  # most often one is enough
        if not left:
            break
        with hooks(model, paths, lambda path, _: left.pop(path, None)):
            model(**batch)
    if left:
        raise DataError(f"{_some(list(left))} never reached by the calibration batches; add what is not to `ignore`")


def _some(paths: Sequence[str]) -> str:
    if len(paths) == 1:
        return f"{paths[0]} is"
    more = f" and {len(paths) - 3} more layers" if len(paths) > 3 else ""
    return f"{', '.join(paths[:3])}{more} are"


@dataclass(frozen=True)
class _Work:
    """What happens to layers: observe them, together where their inputs are the same, and compress."""

    model: nn.Module
    new: New[Any]
    compress: Compress[Any]
    title: str

    def observe(self, paths: Sequence[str], runs: Runs) -> dict[tuple[str, ...], Any]:
        """Return the statistics of the layers `paths` over all `runs`, by the layers that share one."""
        found: dict[tuple[str, ...], Any] = {}
        for batch, run in track(runs, lambda _: f"{self.title}: observing"):
            for layers, inputs in self._inputs(paths, run).items():
                if layers not in found:
                    found[layers] = self.new(inputs[0].shape[-1], inputs[0].device)
                for x in inputs:
                    found[layers].add(_tokens(x, _masks(self.model, layers[0], batch)))
        seen = [path for layers in found for path in layers]
        for path in paths:
            if seen.count(path) != 1:
                how = "is not always called alike" if path in seen else "is never reached by the calibration batches"
                raise DataError(f"{path} {how}; add it to `ignore`")
        return found

    def compress_all(self, statistics: dict[tuple[str, ...], Any]) -> None:
        """Compress layers with the statistics of their inputs, each of which is dropped after its use."""
        for layers in track(list(statistics), lambda layers: f"{self.title}: {layers[0]}"):
            self.compress(list(layers), statistics.pop(layers))

    def _inputs(self, paths: Sequence[str], run: Callable[[], Any]) -> dict[tuple[str, ...], list[Tensor]]:
        """Return the tensors that layers read in `run`, by the layers that read exactly those."""
        seen: dict[str, list[Tensor]] = {}
        with hooks(self.model, paths, lambda path, call: seen.setdefault(path, []).append(call.hidden)):
            run()
        groups: dict[tuple[int, ...], list[str]] = {}
        for path in seen:
            groups.setdefault(tuple(id(x) for x in seen[path]), []).append(path)
        return {tuple(layers): seen[layers[0]] for layers in groups.values()}


def _walk_chain(batches: Sequence[Batch], chain: Chain, paths: Sequence[str], work: _Work) -> None:
    recorded = [record(work.model, batch, chain) for batch in batches]
    hidden = [calls[0].hidden for calls in recorded]
    recorded = [[replace(calls[0], hidden=None), *calls[1:]] for calls in recorded]  # `hidden` holds the only reference

    def through(block: int, i: int) -> Any:
        call = recorded[i][0 if chain.alike else block]
        return replace(call, hidden=hidden[i]).repeat(work.model.get_submodule(chain.blocks[block]))

    for index, block in track(list(enumerate(chain.blocks)), lambda item: f"{work.title}: {item[1]}"):
        inside = [p for p in paths if p.startswith(f"{block}.")]
        statistics: dict[tuple[str, ...], Any] = {}
        for act in track(("observe", "compress", "pass on"), lambda _: f"{work.title}: {block}"):  # noqa: B023
            if act == "observe" and inside:
                statistics = work.observe(
                    inside, [(batch, partial(through, index, i)) for i, batch in enumerate(batches)]
                )
            elif act == "compress":
                work.compress_all(statistics)
            elif act == "pass on" and index + 1 < len(chain.blocks):
                for i in range(len(batches)):
                    hidden[i] = through(index, i)
        _forget(work.model.get_submodule(block))


def _forget(block: nn.Module) -> None:
    # Packed layers keep their widened weight between calls; block after block that would be the whole model once more.
    for module in block.modules():
        if isinstance(module, Packed):
            module.forget()


def _needed(found: Iterable[Chain], paths: Sequence[str]) -> list[Chain]:
    """Cut chains to the blocks from the first to the last that hold one of the layers `paths`."""
    needed = []
    for chain in found:
        at = [i for i, block in enumerate(chain.blocks) if any(p.startswith(f"{block}.") for p in paths)]
        if at:
            needed.append(replace(chain, blocks=chain.blocks[at[0] : at[-1] + 1]))
    return needed


def _tokens(x: Tensor, masks: Iterable[Tensor]) -> Tensor:
    """Return the layer's inputs as (tokens, columns), without padding where one of the `masks` (batch, length) fits."""
    for mask in masks:
        if x.shape[:-1] == mask.shape:
            return x[mask]
        if x.shape[:-1] == (mask.numel(),) and mask.shape[1] > 1:
            return x[mask.flatten()]
    return x.flatten(0, -2)


def _masks(model: nn.Module, path: str, batch: Batch) -> list[Tensor]:
    """Return the masks of real tokens that may fit a layer's inputs, the likelier first."""
    masks = [token_mask(batch)]
    if getattr(model.config, "is_encoder_decoder", False):
        labels = batch.get("labels")
        made = None if labels is None else labels != -100  # decoder inputs are made from the labels
        decoder = batch.get("decoder_attention_mask", made)
        masks.insert(0 if "decoder" in path else 1, decoder)
    return [mask.bool() for mask in masks if isinstance(mask, Tensor) and mask.ndim == 2]


def _on_device(model: nn.Module, batches: Iterable[Batch]) -> list[Batch]:
    device = next(model.parameters()).device
    moved: list[Batch] = [
        {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        for batch in batches
    ]
    if not moved:
        raise DataError("there are no calibration batches")
    return moved


@contextlib.contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Switch off dropout, and caches of keys and values, which a block run twice would fill twice."""
    training = model.training
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in found if getattr(config, "use_cache", False)}
    model.eval()
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for config in configs.values():
            config.use_cache = True
        model.train(training)
