"""How much the loss depends on groups of a layer's inputs: heads, feed-forward units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..core.answers import named
from ..core.errors import DataError, TargetError
from ..core.progress import track
from .matrix import as_matrix

Batch = Mapping[str, Tensor]


@dataclass
class Importance:
    """What one layer's groups are worth, and how much work they make."""

    scores: Tensor  # (groups,) diagonal Fisher information of a mask over the groups
    tokens: float  # per example, that the layer is applied to
    length: float  # of those, how many are attended to together


@torch.enable_grad()
def fisher(
    model: nn.Module, groups: Mapping[str, int], batches: Sequence[Batch], seed: int, title: str = "importance"
) -> dict[str, Importance]:
    """Return the diagonal empirical Fisher information of a mask on groups of each layer's inputs.

    groups: columns per group, by the layer's path. With m a mask of ones per example, the same at every call of the
    layer, it is the sum over examples of (dL/dm)^2 (Michel 2019, eq. 2, squared; Kwon 2022, eq. 9). L is the model's
    loss on the batch's `labels`; without labels, on the batch itself for a causal language model and on labels drawn
    from the model's own predictions, with the seed, for others. Raises DataError when there are no batches, TargetError
    when the model gives no loss.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    found: dict[str, Importance] = {}
    for batch in track(batches, lambda _: title):
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        size = len(next(iter(batch.values())))
        gradients, shapes = _mask_gradients(model, groups, batch, size, generator)
        for path, gradient in gradients.items():
            squares, calls = gradient.float().square().sum(0).cpu(), shapes[path]
            if path not in found:
                tokens = sum(shape[:-1].numel() for shape in calls)
                found[path] = Importance(torch.zeros_like(squares), tokens / size, float(calls[-1][-2]))
            found[path].scores += squares
    if not found:
        raise DataError("there are no calibration batches")
    return found


@torch.enable_grad()
def weight_fisher(
    model: nn.Module, paths: Sequence[str], batches: Sequence[Batch], seed: int, title: str = "importance"
) -> dict[str, Tensor]:
    """Return the diagonal empirical Fisher information of each layer's weight, laid out as `matrix` has it.

    The mean over examples of (dL/dW)^2, one example at a time (Hsu 2022, eq. 5); L as for `fisher`. Raises DataError
    when there are no batches or a layer is never reached, TargetError when the model gives no loss.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    weights: list[Any] = [model.get_submodule(path).weight for path in paths]
    frozen = [weight for weight in weights if not weight.requires_grad]
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]  # a square underflows in 16 bits
    examples = [example for batch in batches for example in _examples(batch, device)]
    if not examples:
        raise DataError("there are no calibration batches")
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        for example in track(examples, lambda _: title):
            loss = loss_of(model, example, generator)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for path, total, gradient in zip(paths, sums, gradients, strict=True):
                if gradient is None:
                    raise DataError(f"{path} is never reached by the calibration batches; add it to `ignore`")
                total += gradient.float().square()
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    return {
        path: as_matrix(model.get_submodule(path), total / len(examples))
        for path, total in zip(paths, sums, strict=True)
    }


def _examples(batch: Batch, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield every example of a batch as a batch of one, without the padding on its right."""
    size = len(next(iter(batch.values())))
    for i in range(size):
        example = {k: v[i : i + 1].to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        mask = example.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.any():
            length, end = mask.shape[1], int(mask[0].nonzero().max()) + 1
            example = {
                k: v[:, :end] if isinstance(v, Tensor) and v.ndim == 2 and v.shape[1] == length else v
                for k, v in example.items()
            }
        yield example


def _mask_gradients(
    model: nn.Module, groups: Mapping[str, int], batch: Batch, size: int, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, list[torch.Size]]]:
    """Return dL/dm (examples, groups) by layer, and the shapes of the layers' inputs at every call."""
    masks: dict[str, Tensor] = {}
    shapes: dict[str, list[torch.Size]] = {path: [] for path in groups}
    handles = []

    def hook(path: str) -> Any:
        def pre(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0]
            shapes[path].append(x.shape)
            if path not in masks:  # a block may be called several times: what goes is missing in all of its calls
                ones = torch.ones(size, x.shape[-1] // groups[path], dtype=x.dtype, device=x.device)
                masks[path] = ones.requires_grad_()
            # windows of an image are examples of their own to attention; they lie together along the first dimension
            spread = masks[path].repeat_interleave(groups[path], 1).repeat_interleave(len(x) // size, 0)
            return (x * spread.view(len(x), *[1] * (x.ndim - 2), -1), *args[1:])

        return pre

    for path in groups:
        handles.append(model.get_submodule(path).register_forward_pre_hook(hook(path)))
    try:
        loss = loss_of(model, batch, generator) * size  # the loss is a mean over examples
    finally:
        for handle in handles:
            handle.remove()
    if missed := [path for path in groups if path not in masks]:
        raise DataError(f"{missed[0]} is never reached by the calibration batches")
    gradients = torch.autograd.grad(loss, list(masks.values()), allow_unused=True)
    pairs = zip(masks.items(), gradients, strict=True)
    return {path: torch.zeros_like(mask) if g is None else g for (path, mask), g in pairs}, shapes


def loss_of(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """Return the model's loss as a mean over the batch."""
    if "labels" not in batch and type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        labels = batch["input_ids"]
        if "attention_mask" in batch:
            labels = labels.masked_fill(batch["attention_mask"] == 0, -100)
        batch = {**batch, "labels": labels}
    output = named(model(**batch), batch)
    loss: Tensor | None = output.get("loss")
    if loss is not None:
        return loss
    logits: Tensor | None = output.get("logits")
    if logits is None:
        raise TargetError(
            f"a {type(model).__name__} gives neither a loss nor logits: importance is measured by what a task needs"
        )
    return _loss_on_own(logits.float(), generator)


def _loss_on_own(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return the loss on labels drawn from what the logits (examples, …, classes) predict; one logit is a mean."""
    flat = logits.flatten(0, -2)
    if flat.shape[1] == 1:
        noise = torch.randn(flat.shape, generator=generator).to(flat.device)
        return (flat - (flat.detach() + noise)).square().mean() / 2
    drawn = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator).flatten()
    return nn.functional.cross_entropy(flat, drawn.to(flat.device))
