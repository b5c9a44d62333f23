"""Export to the GPTQ checkpoint format, which transformers with optimum and gptqmodel, and serving engines, read.

Of each layer it holds, with k = 32 / bits codes to an int32, the first in the lowest bits: qweight (in / k, out),
qzeros (groups, out / k), scales float16 (groups, out) and g_idx int32 (in,), the group of each input.
W[o, i] = scales[g, o] * (code[i, o] - zero[g, o]), g = g_idx[i]; the first version of the format stores zero - 1.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..checkpoint.loader import mark_trainable_
from ..checkpoint.save import replacing_folder, save_checkpoint
from ..checkpoint.structure import read_structure
from ..core.errors import ExportError
from ..core.families import blocks_of, family_of
from ..core.files import write_text
from ..modules.at_rest import leave_at_rest_
from ..modules.packed import PackedConv2d, PackedEmbedding, dequantize_
from ..modules.storage import Packed
from ..modules.ties import own_ties
from ..ops.codebooks import Codebook
from ..ops.quantization import Grid, Quantized
from .inputs import is_image

FORMAT = "gptq"
BITS = (2, 4, 8)
SCALE_ERROR = 1e-3  # share of a scale that float16 may change: far below half a step of any grid


def export_gptq(model: nn.Module, folder: str | Path, processor: Any = None) -> list[str]:
    """Write a checkpoint in the GPTQ format, replacing `folder`, and return what stays dense in it, as messages.

    `model` holds layers of its blocks in 2, 4 or 8 bits on one grid, the same layers in every block, and is otherwise
    stock: raises ExportError where the format cannot say what it is.
    """
    if is_image(model):
        raise ExportError("the GPTQ format is for text models: this one takes images")
    layers = _layers(model)
    grid = next(iter(layers.values())).grid
    block, inside = _blocks(model, layers)
    packed = {path: layer.quantized() for path, layer in layers.items()}
    second = any(q.zero is not None and bool((q.zero == 0).any()) for q in packed.values())
    tensors = {path: pack_layer(path, q, second_version=second) for path, q in packed.items()}
    plain = _dense(model)
    with replacing_folder(folder) as target:
        save_checkpoint(plain, target / "dense", processor)
        for file in (target / "dense").iterdir():
            file.rename(target / file.name)
        (target / "dense").rmdir()
        _rewrite(target, tensors, _config(grid, second, block, inside))
    return _left(model, layers)


def pack_layer(path: str, quantized: Quantized, *, second_version: bool = False) -> dict[str, Tensor]:
    """Return qweight, qzeros, scales and g_idx of a weight on its grid; ExportError for sizes the format cannot hold.

    `second_version` stores zero points as they are: less one, as the first does, a zero has no bits.
    """
    grid, (rows, columns) = quantized.grid, quantized.codes.shape
    bits = int(grid.bits)
    each, size = 32 // bits, grid.group_size or columns
    if rows % each or columns % each or columns % size:
        raise ExportError(
            f"{path}: the GPTQ format cannot hold a weight {(rows, columns)} in {bits} bits and groups of {size}: rows "
            f"and columns must be multiples of {each}, columns also of the group size"
        )
    middle = 2 ** (bits - 1)
    codes = quantized.codes.int() + (middle if quantized.zero is None else 0)
    scale = quantized.scale.float().expand(rows, -1)
    zero = torch.full(scale.shape, middle) if quantized.zero is None else quantized.zero.int().expand(rows, -1)
    half = scale.half()
    if bool(((half.float() - scale).abs() > SCALE_ERROR * scale).any()):
        raise ExportError(f"{path}: a scale of it does not fit float16, which the GPTQ format stores; quantize it anew")
    return {
        "qweight": _words(codes.T, bits, dim=0),
        "qzeros": _words((zero if second_version else zero - 1).T, bits, dim=1),
        "scales": half.T.contiguous(),
        "g_idx": (torch.arange(columns) // size).int(),
    }


def _words(numbers: Tensor, bits: int, dim: int) -> Tensor:
    """Pack numbers below 2^bits, the first in the lowest bits, into int32 along `dim`."""
    parts = numbers.long().unflatten(dim, (-1, 32 // bits))
    shifts = torch.arange(0, 32, bits).view(-1, *[1] * (1 - dim))
    words = (parts << shifts).sum(dim + 1)
    return torch.where(words >= 2**31, words - 2**32, words).int().contiguous()


def _layers(model: nn.Module) -> dict[str, Packed]:
    """Return the layers to pack; ExportError when there are none, or they are not on one grid the format has."""
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Packed)
        and module.grid is not None
        and not isinstance(module, PackedEmbedding | PackedConv2d)
    }
    if not found:
        raise ExportError("no linear layer of this checkpoint is in few bits: there is nothing to write as GPTQ")
    for path, module in found.items():
        grid = module.grid
        if not isinstance(grid, Grid) or grid.bits not in BITS or grid.per_tensor:
            raise ExportError(f"{path} has {_described(grid)}; the GPTQ format holds 2, 4 or 8 bits by row or group")
        if module.input_bits is not None:
            raise ExportError(f"{path} rounds its inputs, which the GPTQ format cannot say; export it for an engine")
    grids = {module.grid: path for path, module in found.items()}
    if len(grids) > 1:
        named = "; ".join(f"{path} has {_described(grid)}" for grid, path in grids.items())
        raise ExportError(f"the GPTQ format has one grid for all layers, but {named}: quantize them alike")
    return found


def _described(grid: Grid | Codebook | None) -> str:
    if not isinstance(grid, Grid):
        return "floats" if grid is None else "codewords"
    bits = f"{grid.bits} bits" if isinstance(grid.bits, int) else str(grid.bits)
    return f"{bits}, {'symmetric' if grid.symmetric else 'asymmetric'}, group size {grid.group_size}"


def _blocks(model: nn.Module, layers: Mapping[str, Packed]) -> tuple[str, list[str]]:
    """Return the path of the list of blocks, and which of their layers are packed: the same in each."""
    paths = [block.path for block in blocks_of(model, family_of(model))]
    inside = {block: [p[len(block) + 1 :] for p in layers if p.startswith(f"{block}.")] for block in paths}
    outside = sorted(set(layers) - {f"{block}.{name}" for block, names in inside.items() for name in names})
    if outside:
        raise ExportError(f"{outside[0]} is in few bits, but the GPTQ format has only layers of blocks: leave it dense")
    roots = {path.rpartition(".")[0] for path in paths}
    if len(roots) > 1 or len({tuple(names) for names in inside.values()}) > 1:
        raise ExportError("the GPTQ format wants the same layers in few bits in every block; these blocks differ")
    return roots.pop(), inside[paths[0]]


def _dense(model: nn.Module) -> nn.Module:
    """Return a copy with ordinary layers in float16; ExportError when it is not a stock model then."""
    plain = dequantize_(copy.deepcopy(model))
    leave_at_rest_(plain)
    mark_trainable_(plain)  # transformers refuses to cast a model it takes for a quantized one
    plain = plain.half()
    if differs := read_structure(plain):
        raise ExportError(
            f"the GPTQ format has stock shapes only, but {next(iter(differs))} differs from what the config builds"
        )
    if ties := own_ties(plain):
        raise ExportError(f"the GPTQ format cannot say that {next(iter(ties))} shares the weight of another layer")
    plain.config.dtype = torch.float16
    return plain


def _config(grid: Any, second: bool, block: str, inside: list[str]) -> dict[str, Any]:
    version = f"{FORMAT}_v2" if second else FORMAT
    return {
        "quant_method": FORMAT,
        "bits": grid.bits,
        "group_size": grid.group_size or -1,
        "desc_act": False,  # columns lie in their own order, whatever order they were rounded in
        "sym": grid.symmetric,
        "format": version,
        "checkpoint_format": version,
        "block_name_to_quantize": block,
        "modules_in_block_to_quantize": [[name] for name in inside],
        "meta": {"quantizer": ["hfcompress"]},
    }


def _rewrite(folder: Path, layers: Mapping[str, dict[str, Tensor]], config: dict[str, Any]) -> None:
    """Put the packed tensors in place of the dense weights of the saved checkpoint, and the format in its config."""
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ExportError("the model is too large for one file, which the GPTQ export needs")
    tensors = load_file(file)
    for path, parts in layers.items():
        if tensors.pop(f"{path}.weight", None) is None:
            raise ExportError(
                f"{path}: this model type stores the layer under another name; GPTQ readers would miss it"
            )
        tensors |= {f"{path}.{name}": tensor for name, tensor in parts.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_text(folder / "config.json", json.dumps(saved | {"quantization_config": config}, indent=2) + "\n")


def _left(model: nn.Module, layers: Mapping[str, Packed]) -> list[str]:
    """Return a message for each packed thing that is dense in the export."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, Packed) and path not in layers:
            found.append(f"{path} is stored dense, in float16: the GPTQ format packs linear layers only")
        elif isinstance(module, Packed) and module.sparse:
            found.append(f"{path} is stored with its zeros: the GPTQ format has no masks")
    return found
