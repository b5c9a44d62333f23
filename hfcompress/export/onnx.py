"""Export to ONNX: laid out as the Hub's tools expect, weights as packed as the model's, checked against the model."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..core.errors import ExportError
from ..core.files import writing
from .cpu import needs_reduced_range
from .inputs import InputSpec, example_inputs

if TYPE_CHECKING:
    from .graph import Lowering
    from .trace import Traced

logger = logging.getLogger(__name__)

FILES = {"onnxruntime": "onnx/model.onnx", "onnxruntime-int8": "onnx/model_quantized.onnx"}
TOLERANCE = 1e-3  # of the largest logit
OPSET = 20  # the first with Gelu as one operator


def export_onnx(
    model: nn.Module,
    folder: str | Path,
    *,
    engines: Sequence[str] = tuple(FILES),
    image_size: int | tuple[int, int] | None = None,
    opset: int = OPSET,
    reduce_range: bool | None = None,
) -> dict[str, Path]:
    """Write the files of `engines` (`onnx/model.onnx`, `onnx/model_quantized.onnx`) and return their paths by engine.

    Batch and sequence are dynamic, an image's side is fixed (default: the config's). `reduce_range` keeps int8 weights
    to 7 bits, which CPUs without VNNI need (default: as this CPU needs it). Raises ExportError when a package is
    missing, the exporter fails, or the logits disagree with the model's; then nothing is written.
    """
    require_onnx()
    from .graph import lower
    from .lower_float import FloatProducts
    from .lower_int8 import Int8Products
    from .trace import trace

    reduced = needs_reduced_range() if reduce_range is None else reduce_range
    ways: dict[str, Lowering] = {"onnxruntime": FloatProducts(), "onnxruntime-int8": Int8Products(reduced)}
    traced = trace(model, image_size, opset)
    targets = {name: Path(folder) / FILES[name] for name in engines}
    try:
        with contextlib.ExitStack() as stack:
            for name, target in targets.items():
                file = stack.enter_context(writing(target))
                file.write_bytes(lower(traced, ways[name]).SerializeToString())
                _check(traced, name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            (Path(folder) / "onnx").rmdir()  # only if nothing was there before
        raise
    return targets


def _check(traced: Traced, name: str, file: Path) -> None:
    """Compare a written file with the model: computed in float32 it must agree, in int8 its error is logged."""
    error = compare(traced.plain, traced.spec, file, traced.image_size)
    if name == "onnxruntime" and not error <= TOLERANCE:
        raise ExportError(f"the ONNX export disagrees with the model: largest error {error:.2e} of {TOLERANCE:.0e}")
    logger.info("%s: largest error %.1f%% of the largest logit", name, 100 * error)


def compare(plain: nn.Module, spec: InputSpec, file: Path, image_size: int | tuple[int, int] | None) -> float:
    """Return the largest error of an exported file's logits relative to the model's largest, over untraced shapes.

    Raises ExportError when a logit is not finite.
    """
    from .runtime import open_onnx

    run = open_onnx(file, threads=torch.get_num_threads())
    worst = 0.0
    for batch, length, seed in ((3, 11, 1), (1, 7, 2)):
        inputs = example_inputs(spec, batch, length if not spec.is_image else None, image_size, seed, mask_zeros=True)
        with torch.inference_mode():
            wanted = plain(*inputs.values()).numpy()
        got = run({name: tensor.numpy() for name, tensor in inputs.items()})
        if got.shape != wanted.shape or not np.isfinite(got).all():
            raise ExportError(
                f"the ONNX export gives logits {got.shape}, some not finite; the model gives {wanted.shape}"
            )
        worst = max(worst, float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-6)))
    return worst


def require_onnx() -> None:
    """Raise ExportError when a package the export needs is not installed."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportError(f'{package} is not installed; run: pip install "hfcompress[onnx]"') from error
