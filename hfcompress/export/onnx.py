"""Export to the engines' files: laid out as the Hub's tools expect, weights packed, checked against the model."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..core.errors import ExportError
from .cpu import needs_reduced_range
from .files import write_onnx, writing_pair
from .notes import made_with
from .opening import MADE_OF
from .runtime import engine, require_engine

if TYPE_CHECKING:
    from .calibrate import Batch
    from .trace import Traced

OPSET = 20  # the first with Gelu as one operator
DEFAULT = ("onnxruntime", "onnxruntime-int8")


def export_onnx(
    model: nn.Module,
    folder: str | Path,
    *,
    engines: Sequence[str] = DEFAULT,
    image_size: int | tuple[int, int] | None = None,
    opset: int = OPSET,
    reduce_range: bool | None = None,
    calibration: Iterable[Batch] | None = None,
    made_of: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Write the files that `engines` read (`onnx/model.onnx`, …) and return their paths by engine.

    Batch and sequence are dynamic, an image's side is fixed (default: the config's). `reduce_range` keeps int8 weights
    to 7 bits, which CPUs without VNNI need (default: as this CPU needs it). `calibration`: batches of arrays, single
    examples without padding are best, on which engines with fixed activation grids get those the checkpoint lacks.
    `made_of`: digests of the files all this was read from, for a record in each file; where there is none, `hfcompress
    bench` exports the model again. Raises ExportError when a package or the calibration is missing, the exporter fails,
    or the logits disagree with the model's; then nothing is written.
    """
    require_onnx()
    for name in engines:
        require_engine(name)
    from .agreement import check_file
    from .trace import trace

    traced = trace(model, image_size, opset)
    reduced = needs_reduced_range() if reduce_range is None else reduce_range
    targets = {name: Path(folder) / str(engine(name).file) for name in engines}
    batches = _calibration(traced, engines, calibration)
    record = json.dumps({**made_of, **made_with(image_size, reduced)}) if made_of else ""
    try:
        with contextlib.ExitStack() as stack:
            for name, target in targets.items():
                written = stack.enter_context(writing_pair(target))
                _write(traced, name, written, reduced, batches, record)
                check_file(traced, name, written)
    except BaseException:
        for target in targets.values():
            with contextlib.suppress(OSError):
                target.parent.rmdir()  # only if nothing was there before
        raise
    return targets


def _calibration(traced: Traced, engines: Sequence[str], batches: Iterable[Batch] | None) -> list[Batch]:
    """Return the examples, or none when no engine has use for them; ExportError when they are missing."""
    from .calibrate import has_grids, open_layers

    wanting = [name for name in engines if engine(name).calibrated]
    if not wanting or not (layers := open_layers(traced)):
        return []
    found = list(batches or ())
    if not found and not has_grids(traced):
        raise ExportError(
            f"{', '.join(wanting)} rounds activations on fixed grids, which this checkpoint does not have "
            f"({len(layers)} layers, such as {layers[0]}): give training examples to find them on. A run does; "
            "hfcompress bench takes --calibration RECIPE and reads the training split of that recipe's data."
        )
    return found


def _write(traced: Traced, name: str, file: Path, reduce_range: bool, batches: list[Batch], made_of: str) -> None:
    if file.suffix == ".xml":
        from .openvino import write_openvino

        write_openvino(traced, file, int8=engine(name).calibrated, batches=batches, made_of=made_of)
        return
    from .agreement import EXACT
    from .calibrate import calibrated
    from .graph import Lowering, lower
    from .lower_blocks import BlockProducts
    from .lower_float import FloatProducts
    from .lower_int8 import Int8Products

    if engine(name).calibrated:
        traced = calibrated(traced, batches)
    how: Lowering = Int8Products(reduce_range)
    if name in EXACT:
        how = FloatProducts()
    elif bits := engine(name).weight_bits:
        how = BlockProducts(bits)
    proto = lower(traced, how)
    if made_of:
        proto.metadata_props.add(key=MADE_OF, value=made_of)
    write_onnx(proto, file)


def require_onnx() -> None:
    """Raise ExportError when a package the export needs is not installed."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportError(f'{package} is not installed; run: pip install "hfcompress[onnx]"') from error
