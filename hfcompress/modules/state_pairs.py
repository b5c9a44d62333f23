"""Which hidden states of two models meet, and the projections that take one's to the width of the other's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import LifecycleError
from ..core.layer_map import Pairs, layer_pairs
from ..core.method import Context
from ..core.position_tables import usual_image_size
from ..core.teaching import HiddenPart
from .companion import Projection
from .pairing import depth_of, hidden_widths, token_tables
from .pixels import as_read
from .seen import as_tokens, require_same_tokens

_IMAGES = "pixel_values"


def state_pairs(part: HiddenPart, student: int, teacher: int, where: str) -> Pairs:
    """Return the pairs of hidden states, that of the embeddings being 0, of models with so many layers; not `nearest`.

    Raises LifecycleError for a layer there is not.
    """
    if part.layers == "nearest":
        raise LifecycleError(f"{where}.layers: which are nearest shows in training only")
    pairs = [(s + 1, t + 1) for s, t in layer_pairs(part.layers, student, teacher, f"{where}.layers")]
    return [(0, 0), *pairs] if part.embeddings else pairs


def projections_to(
    teacher: nn.Module, model: nn.Module, parts: Mapping[str, HiddenPart], ctx: Context, *, each: bool
) -> list[nn.Module | None]:
    """Return what takes the model's hidden states to the teacher's width: one for all, or one for each; None: nothing.

    `parts` are what compares them, by the key of the recipe. Raises LifecycleError when states that meet differ in
    more than width.
    """
    ours, theirs = hidden_widths(model), hidden_widths(teacher)
    generator = torch.Generator().manual_seed(ctx.seed)
    if not len(ours) == len(theirs) == 1:
        return _by_state(model, teacher, parts, ctx, generator)
    depth = depth_of(model)
    count = 0 if ours == theirs else depth + 1 if each and depth is not None else 1
    modules = [Projection(ours[0], theirs[0], generator) for _ in range(count)]
    tables = token_tables(model, teacher)
    if tables is not None:
        for module in modules:  # the hidden states of all layers lie in the space that the tokens come in by
            module.fit_(*tables)
    return list(modules)


def _by_state(
    model: nn.Module, teacher: nn.Module, parts: Mapping[str, HiddenPart], ctx: Context, generator: torch.Generator
) -> list[nn.Module | None]:
    """Return a projection or None for each hidden state of a model whose width differs from stage to stage."""
    if getattr(model, "main_input_name", "") != _IMAGES or getattr(teacher, "main_input_name", "") != _IMAGES:
        return []
    ours, theirs = _states(model), _states(teacher)
    wanted: dict[int, int] = {}  # hidden state of the model to the width it is compared at
    for where, part in parts.items():
        if part.layers == "nearest":
            _require_one_width([*ours[1:], *theirs[1:]], where)
            continue
        pairs = state_pairs(part, len(ours) - 1, len(theirs) - 1, where)
        require_same_tokens([(ours[s], theirs[t]) for s, t in pairs], where)
        for s, t in pairs:
            if wanted.setdefault(s, theirs[t].shape[-1]) != theirs[t].shape[-1]:
                raise LifecycleError(f"{where}.layers: state {s} of the student already meets one of another width")
    widths = [(state.shape[-1], wanted.get(s, state.shape[-1])) for s, state in enumerate(ours)]
    found = [None if own == other else Projection(own, other, generator) for own, other in widths]
    return [] if not any(found) else list(found)


def _require_one_width(states: Iterable[Tensor], where: str) -> None:
    widths = sorted({state.shape[-1] for state in states})
    if len(widths) > 1:
        raise LifecycleError(
            f"{where}.layers: nearest compares every layer with every other, and these have widths of "
            f"{', '.join(map(str, widths))}; say which meet"
        )


@torch.no_grad()
def _states(model: nn.Module) -> list[Tensor]:
    """Return what the hidden states of one black image of the usual size look like, (1, tokens, width) each."""
    config: Any = model.config
    like, training = next(model.parameters()), model.training
    usual = usual_image_size(config)
    height, width = (usual, usual) if isinstance(usual, int) else usual
    image = torch.zeros(1, config.num_channels, height, width, device=like.device, dtype=like.dtype)
    model.eval()
    try:
        outputs = model(**as_read(model, {_IMAGES: image}), output_hidden_states=True)
    finally:
        model.train(training)
    return [as_tokens(state) for state in outputs["hidden_states"] or ()]
