"""What a checkpoint holds, layer by layer, in a table for the terminal."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from torch import nn
from transformers import AutoConfig, AutoImageProcessor

from ..checkpoint import is_stock, load_model
from ..checkpoint.adapters import find_adapter, refusal
from ..checkpoint.load import no_folder_either, require_folder
from ..core.errors import CheckpointError, FamilyError, MeasureError, RemoteCodeError
from ..core.families import Block, blocks_of, family_of, head_count, unit_count
from ..core.model_classes import class_of, saved_class, takes_images
from ..core.position_tables import longest_input
from ..core.pretrained import from_pretrained
from ..measure.layout import layout_of
from ..measure.result import Result, read_result
from ..measure.size import count_parameters, export_files, local_folder, weight_files
from ..measure.unfinished import unfinished
from ..modules.adapted import Adapted
from ..modules.factorized import Factorized
from ..modules.pixels import pixels_of
from ..modules.storage import Packed
from ..ops.codebooks import Codebook
from ..ops.quantization import TERNARY
from ..train.tasks import auto_class_for
from .inspect_bars import layer_bars
from .undamaged import require_undamaged


def auto_class_of(source: str) -> str:
    """Return the class that loads a checkpoint with the head it was saved with: a task's Auto class, or its own.

    Raises CheckpointError when its config names no class that transformers has, or it is an adapter.
    """
    require_folder(source)
    if adapter := find_adapter(source):
        raise refusal(adapter)
    try:
        config = from_pretrained(AutoConfig, source)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] + no_folder_either(source, error)
        raise CheckpointError(f"cannot read {source}: {reason}") from error
    name = saved_class(config, source)
    return auto_class_for(name) or name


def own_pixels(source: str, auto_class: str) -> int | None:
    """Return the pixels per side of what a checkpoint's image processor gives, if it comes with one."""
    if not reads_images(source, auto_class):
        return None
    try:
        return pixels_of(from_pretrained(AutoImageProcessor, source))
    except (OSError, ValueError, RemoteCodeError):
        return None


def reads_images(source: str, auto_class: str) -> bool:
    """Say whether the model that `auto_class` loads from a checkpoint reads pixels."""
    return takes_images(class_of(auto_class, from_pretrained(AutoConfig, source)))


def checkpoint_of(source: str) -> str:
    """Return the checkpoint in a run folder, or `source` itself when it is one or a Hub id.

    Raises CheckpointError for the folder of a run that has not come so far.
    """
    inner = Path(source) / "model"
    if (inner / "config.json").exists():
        return str(inner)
    if not (Path(source) / "config.json").exists() and (why := unfinished(Path(source))):
        raise CheckpointError(why)
    return source


def verify_checkpoint(source: str) -> str:
    """Compare a checkpoint with the digests it was saved with; raises and returns as `require_undamaged`."""
    source = checkpoint_of(source)
    require_folder(source)
    folder = local_folder(source)
    made_it = (folder / "result.json").is_file() or folder.name == "model"  # a run's other models are not its result's
    return require_undamaged(folder, _result(str(folder)) if made_it else None)


def inspect_checkpoint(source: str) -> Group:
    """Return what lies on disk, and heads, feed-forward units and storage of each block."""
    source = checkpoint_of(source)
    model = load_model(source, auto_class_of(source))
    result = _result(source)
    before, stages = (result.baseline.layout, result.stages) if result else ([], [])
    return Group(_summary(source, model), "", _layers(model), "", layer_bars(before, layout_of(model), stages))


def _result(source: str) -> Result | None:
    """Return the result of the run that made the checkpoint, where it lies beside it."""
    for place in (Path(source), Path(source).parent):
        if (place / "result.json").is_file():
            with contextlib.suppress(MeasureError):
                return read_result(place)
    return None


def _summary(source: str, model: nn.Module) -> Table:
    folder = local_folder(source)
    parameters, nonzeros = count_parameters(model)
    name = escape(Path(source).name)
    table = Table(title=name, title_justify="left", title_style="bold", show_header=False, show_edge=False)
    for name, size in {**weight_files(folder), **export_files(folder)}.items():
        table.add_row(escape(name), f"{size / 1e6:.2f} MB")
    table.add_row("class", type(model).__name__)
    table.add_row("loads with", "transformers alone" if is_stock(folder) else "import hfcompress; from_pretrained")
    if known := getattr(model.config, "vocab_size", 0):
        limit = longest_input(model.config)
        table.add_row("tokens", f"{known:,} known" + (f", {limit:,} in a text at most" if limit else ""))
    table.add_row("parameters", f"{parameters:,} ({nonzeros / parameters:.1%} not zero)")
    return table


def _layers(model: nn.Module) -> Table | str:
    try:
        blocks = blocks_of(model, family_of(model))
    except FamilyError as error:
        return str(error)
    table = Table(title="blocks", title_justify="left", title_style="bold", show_edge=False)
    for name in ("block", "heads", "FFN units", "numbers", "stored as"):
        table.add_column(name, justify="right")
    for block in blocks:
        table.add_row(*_block_row(model, block))
    return table


def _block_row(model: nn.Module, block: Block) -> list[str]:
    stored: Counter[str] = Counter()
    for module in model.get_submodule(block.path).modules():
        for name, parameter in module.named_parameters(recurse=False):
            count, kind = _stored_as(module, name, parameter)
            stored[kind] += count
    total = sum(stored.values())
    shares = [f"{kind} {number / total:.0%}" for kind, number in stored.most_common() if number / total > 0.005]
    shares += _ranks(model.get_submodule(block.path))
    heads, units = head_count(model, block), unit_count(model, block)
    return [block.path, str(heads), str(units), f"{total:,}", ", ".join(shares)]


def _ranks(block: nn.Module) -> list[str]:
    """Return the ranks of layers that are split into factors, and of adapters kept beside layers."""
    found = []
    for kind, title in ((Factorized, "factors"), (Adapted, "adapters")):
        layers: list[Any] = [m for m in block.modules() if isinstance(m, kind) and hasattr(m, "rank")]
        ranks = sorted({layer.rank for layer in layers})
        if ranks:
            found.append(f"{title} of rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else ""))
    return found


def _stored_as(module: nn.Module, name: str, parameter: nn.Parameter) -> tuple[int, str]:
    """Return how many numbers a parameter stands for, and in what form."""
    kind = str(parameter.dtype).removeprefix("torch.")
    if not isinstance(module, Packed):
        return parameter.numel(), kind
    if name == "weight_codes" and module.grid is not None:
        kind = {1: "binary", TERNARY: TERNARY}.get(module.grid.bits, f"int{module.grid.bits}")
        kind = f"{2 ** int(module.grid.bits)} words" if isinstance(module.grid, Codebook) else kind
    sparse = "sparse " if module.sparse and name in ("weight", "weight_codes") else ""
    return module.packed_numel.get(name, parameter.numel()), sparse + kind
