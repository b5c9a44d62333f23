"""Export to ONNX, fp32 and int8, laid out as the Hub's tools expect, and checked against the model."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import ExportError
from ..core.files import writing
from .inputs import InputSpec, example_inputs, spec_of
from .plain import plain_copy

logger = logging.getLogger(__name__)

FILES = {"onnxruntime": "onnx/model.onnx", "onnxruntime-int8": "onnx/model_quantized.onnx"}
TOLERANCE = 1e-3  # of the largest logit
OPSET = 18


class _Logits(nn.Module):
    """Positional tensors in, logits out: what an exporter can trace."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True).logits


def export_onnx(
    model: nn.Module,
    folder: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    opset: int = OPSET,
    reduce_range: bool | None = None,
) -> dict[str, Path]:
    """Write `onnx/model.onnx` and `onnx/model_quantized.onnx` under `folder` and return their paths by engine.

    Batch and sequence are dynamic, an image's side is fixed (default: the config's). `reduce_range` keeps int8 weights
    to 7 bits, which CPUs without VNNI need (default: as this CPU needs it). Raises ExportError when a package is
    missing, the exporter fails, or the logits disagree with the model's; then nothing is written.
    """
    _require_onnx()
    from .onnx_int8 import quantize_file

    spec = spec_of(model)
    plain = _Logits(plain_copy(model), spec.names).eval()
    targets = [Path(folder) / file for file in FILES.values()]
    try:
        with writing(targets[0]) as fp32, writing(targets[1]) as int8, quiet():
            _export(plain, spec, fp32, image_size, opset)
            error = compare(plain, spec, fp32, image_size)
            if not error <= TOLERANCE:
                raise ExportError(
                    f"the ONNX export disagrees with the model: largest error {error:.2e} of {TOLERANCE:.0e}"
                )
            quantize_file(fp32, int8, reduce_range)
            int8_error = compare(plain, spec, int8, image_size)
    except BaseException:
        with contextlib.suppress(OSError):
            targets[0].parent.rmdir()  # only if nothing was there before
        raise
    logger.info("int8 export: largest error %.1f%% of the largest logit", 100 * int8_error)
    return dict(zip(FILES, targets, strict=True))


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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters' prints, warnings and log chatter off the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _export(
    plain: nn.Module, spec: InputSpec, file: Path, image_size: int | tuple[int, int] | None, opset: int
) -> None:
    """Trace `plain` into `file`; the tensors are distinct and the mask holds zeros, or the exporter merges inputs."""
    inputs = example_inputs(spec, 2, image_size=image_size, mask_zeros=True)
    axes = {0: torch.export.Dim("batch")}
    if not spec.is_image:
        axes[1] = torch.export.Dim("sequence")
    try:
        torch.onnx.export(
            plain,
            tuple(inputs.values()),
            str(file),
            input_names=list(spec.names),
            output_names=["logits"],
            dynamic_shapes=(tuple(dict(axes) for _ in inputs),),
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except Exception as error:  # the exporter has no common base class for its failures
        raise ExportError(f"the ONNX exporter failed: {type(error).__name__}: {str(error)[:500]}") from error


def _require_onnx() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportError(f'{package} is not installed; run: pip install "hfcompress[onnx]"') from error
