"""Whether a written export computes what the model does."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..core.errors import ExportError
from .inputs import InputSpec, example_inputs
from .opening import Run, joined
from .runtime import engine
from .trace import Logits, Traced
from .weights import Array

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of the largest logit
EXACT = ("onnxruntime", "openvino")  # computed in float32, as the model is
SHAPES = ((3, 11), (1, 7))  # batch and length: neither is the one that was traced
# Where inputs are rounded, a sum added in another order may fall on the other side of a half: the code is then one off,
# and what comes after it differs. Of more examples the median is still that of float if flips are rare; where they are
# not, the model's own answers move as much when its weights move by what float32 loses in a sum.
ROUNDED_SHAPES = tuple((1, length) for length in range(4, 28))
NOISE = 1e-6
SLACK = 3.0  # an engine loses a little more in its sums than the noise above, and few examples are compared
FLIPPED = 0.1  # no flip moves a logit by more than this, unless the model's own do


def check(traced: Traced, name: str, run: Run) -> None:
    """Hold an export's logits against the model's: ExportError where they should be those and are not.

    The int8 engines' error is only logged. Shapes are other than the traced ones.
    """
    rounded = any(layer.inputs for layer in traced.layers.values())
    shapes = ROUNDED_SHAPES if rounded else SHAPES
    found = errors(traced.plain, traced.spec, run, traced.image_size, shapes)
    error, bound = float(found.max()), TOLERANCE
    if rounded:
        own = errors(traced.plain, traced.spec, _run_of(_disturbed(traced.plain)), traced.image_size, shapes)
        if error <= max(FLIPPED, SLACK * float(own.max())):
            error, bound = float(np.median(found)), max(TOLERANCE, SLACK * float(np.median(own)))
    if name in EXACT and not error <= bound:
        raise ExportError(f"the {name} export disagrees with the model: error {error:.2e}, at most {bound:.0e} allowed")
    logger.info("%s: largest error %.1f%% of the largest logit", name, 100 * float(found.max()))


def check_file(traced: Traced, name: str, file: Path) -> None:
    """Run the file in its engine and `check` it."""
    check(traced, name, engine(name).run(file, torch.get_num_threads()))  # type: ignore[misc]


def errors(
    plain: nn.Module,
    spec: InputSpec,
    run: Run,
    image_size: int | tuple[int, int] | None = None,
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> Array:
    """Return every logit's error relative to the model's largest logit, flat; `plain` takes what `spec` says, in order.

    Raises ExportError when a logit is not finite.
    """
    wanted, got = [], []
    model = _run_of(plain)
    for seed, (batch, length) in enumerate(shapes, start=1):
        size = None if spec.is_image else min(length, spec.max_length or length)
        spec = replace(spec, choices=spec.choices and 1 + seed)  # not as many as were traced
        tensors = example_inputs(spec, batch, size, image_size, seed, mask_zeros=True)
        inputs = {name: tensor.numpy() for name, tensor in tensors.items()}
        wanted.append(model(inputs))
        got.append(run(inputs))
        if got[-1].shape != wanted[-1].shape or not np.isfinite(got[-1]).all():
            raise ExportError(
                f"the export gives logits {got[-1].shape}, some not finite; the model gives {wanted[-1].shape}"
            )
    largest = max(1e-6, *(float(np.abs(each).max()) for each in wanted))
    return np.concatenate([np.abs(a - b).ravel() for a, b in zip(wanted, got, strict=True)]) / largest


def _run_of(plain: nn.Module) -> Run:
    def run(inputs: Mapping[str, Array]) -> Array:
        with torch.inference_mode():
            found = plain(*(torch.from_numpy(value) for value in inputs.values()))
        return joined([each.numpy() for each in (found if isinstance(found, tuple) else (found,))])

    return run


def _disturbed(plain: Logits) -> Logits:
    """Return a copy whose weights are off by about what float32 loses in a sum."""
    copied = copy.deepcopy(plain)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in copied.parameters():
            if weight.is_floating_point():
                weight.mul_(1 + NOISE * torch.randn(weight.shape, generator=generator))
    return copied
