"""Linear layers held by the bitsandbytes library: LLM.int8, NF4 and FP4; put in, read off, widened again.

The library is imported only where such a layer is made or met, so that nothing else needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from transformers.pytorch_utils import Conv1D

from ..core.errors import CheckpointError, HFCompressError, LifecycleError, TargetError
from .matrix import matrix
from .spec import KINDS

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_NESTED_BLOCK = 256  # block scales that share one scale of their own under double quantization


@dataclass(frozen=True)
class BnbFormat:
    """How weights are held: what all layers of a checkpoint have in common, and the block size of new ones."""

    mode: Literal["int8", "nf4", "fp4"]
    double_quant: bool = False  # 4 bits: the scales of blocks are themselves held in 8 bits
    threshold: float = 6.0  # int8: inputs with a larger value are multiplied in float (Dettmers 2022a, section 3.2)
    block_size: int = 64  # 4 bits: weights that share a scale


def library(error: type[HFCompressError] = LifecycleError) -> Any:
    """Return the bitsandbytes module; raises `error`, with the command that helps, when it cannot be imported."""
    try:
        import bitsandbytes
    except ImportError as missing:
        raise error(
            f"this needs the package bitsandbytes, which cannot be imported ({missing}); run: pip install bitsandbytes"
        ) from missing
    return bitsandbytes


def can_quantize(module: nn.Module) -> bool:
    """Say whether the library can hold this layer, training wrappers apart, and a checkpoint can describe it."""
    kind = type_before_parametrizations(module)
    return kind in (nn.Linear, Conv1D) and any(kind is known.cls for known in KINDS.values())


def expect_bnb_(model: nn.Module, paths: Iterable[str], form: BnbFormat) -> None:
    """Replace the empty linear layers at `paths` by the library's, whose weights are still to be loaded."""
    for path in paths:
        module = model.get_submodule(path)
        if not can_quantize(module):
            raise CheckpointError(f"{path}: bitsandbytes can't hold a {type(module).__name__}")
        model.set_submodule(path, empty_layer(module, form).train(module.training))


def flat_codes(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict as it is written to a file, with int8 codes flat.

    Their own shape is that of the float weight: a loader that does not know them would take the codes for it.
    """
    codes = {f"{path}.weight" for path, module in bnb_layers(model) if module.weight.dtype is torch.int8}
    codes |= {name.replace(".base_layer.", ".") for name in codes}  # while an adapter of peft is on the layer
    return {name: tensor.flatten() if name in codes else tensor for name, tensor in state.items()}


def check_bnb_(model: nn.Module, form: BnbFormat) -> None:
    """Check that every loaded layer's tensors belong together, and settle how it computes and is counted.

    Raises CheckpointError: the library's kernels trust sizes that stand in the file, and would read past the end.
    """
    for path, module in bnb_layers(model):
        shape = (module.out_features, module.in_features)
        if not (_shaped_int8_(module, shape) if form.mode == "int8" else _sound_4bit(module, shape, form)):
            raise CheckpointError(f"{path}: the tensors stored for this layer do not make a {form.mode} weight {shape}")
        settle(module)


def bnb_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield path and module of every layer that bitsandbytes holds."""
    yield from ((path, module) for path, module in model.named_modules(remove_duplicate=False) if is_bnb(module))


def is_bnb(module: nn.Module) -> bool:
    """Say whether bitsandbytes holds this layer."""
    known = sys.modules.get("bitsandbytes")  # when nobody has imported it, no such layer exists
    return known is not None and isinstance(module, known.nn.Linear4bit | known.nn.Linear8bitLt)


def float_twin(module: nn.Module) -> nn.Module:
    """Return the float layer, on the meta device, that a layer of bitsandbytes stands for."""
    bias, source = module.bias is not None, getattr(module, "source_cls", nn.Linear)
    with torch.device("meta"):
        if source is Conv1D:
            return Conv1D(module.out_features, module.in_features)
        return nn.Linear(module.in_features, module.out_features, bias=bias)  # type: ignore[arg-type]


def bnb_format(model: nn.Module) -> BnbFormat | None:
    """Return how bitsandbytes holds layers of this model, None when it holds none; TargetError when they differ."""
    forms = {_format(module) for _, module in bnb_layers(model)}
    if len(forms) > 1:
        raise TargetError(
            f"one checkpoint holds bitsandbytes layers of one format, this model has {len(forms)}: "
            f"{', '.join(sorted(map(str, forms)))}"
        )
    return forms.pop() if forms else None


def stored_bytes(module: nn.Module) -> int:
    """Return the bytes a checkpoint needs for this layer, scales and tables included, its bias left out."""
    state = module.state_dict()
    return sum(t.numel() * t.element_size() for name, t in state.items() if name != "bias")


def widen_bnb_(model: nn.Module) -> nn.Module:
    """Replace every layer of bitsandbytes by the plain float layer it stands for, in place, and return the model."""
    for path, module in list(bnb_layers(model)):
        module.state_dict()  # brings back the plain layout, should inference have rearranged the codes
        new: Any = float_twin(module)
        bias = module.bias
        weight = widened(module.weight, getattr(module, "state", None))
        weight = weight if bias is None else weight.to(bias.dtype)
        new.weight = nn.Parameter(weight.T.contiguous() if isinstance(new, Conv1D) else weight)
        if bias is not None:
            new.bias = nn.Parameter(bias.detach())
        model.set_submodule(path, new.train(module.training))
    return model


def empty_layer(module: nn.Module, form: BnbFormat) -> Any:
    """Return the library's layer in place of `module`, on the meta device, ready for quantized weights."""
    bnb: Any = library(CheckpointError)
    rows, columns = matrix(module).shape
    bias = getattr(module, "bias", None) is not None
    with torch.device("meta"):
        if form.mode == "int8":
            new = bnb.nn.Linear8bitLt(columns, rows, bias, has_fp16_weights=False, threshold=form.threshold)
            new.weight.data = new.weight.data.to(torch.int8)
        else:
            new = bnb.nn.Linear4bit(
                columns, rows, bias, compress_statistics=form.double_quant, quant_type=form.mode
            )  # it computes in the dtype of its input
            new.weight.data = new.weight.data.to(torch.uint8)
    new.source_cls = type(module)
    return new.requires_grad_(False)


def widened(weight: Any, state: Any = None) -> Tensor:
    """Return the float values (out, in) of a quantized parameter; `state` has int8's scales after a first use."""
    functional: Any = library().functional
    if hasattr(weight, "quant_state"):
        return functional.dequantize_4bit(weight.data, weight.quant_state)
    scales = weight.SCB if weight.SCB is not None else state.SCB
    return functional.int8_vectorwise_dequant(weight.data, scales)


def _format(module: Any) -> BnbFormat:
    if hasattr(module, "state"):
        return BnbFormat("int8", threshold=module.state.threshold)
    return BnbFormat(module.weight.quant_type, module.weight.compress_statistics)


def settle(module: Any) -> None:
    """Say how many weights a 4-bit layer has, and keep the library from rearranging their codes at first use.

    It does so on CPUs with AVX512-BF16, for a kernel that rounds inputs and scales to bfloat16 (a later save would keep
    that), and that fails on outputs that are no multiple of 32 and on blocks that run over the end of a row.
    """
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False
        size = module.out_features * module.in_features  # two to a byte: the byte's own count would be half
        module.packed_numel = {"weight": size}
        module.packed_nonzeros = {"weight": size - _zeros(module.weight, size)}


def _zeros(weight: Any, size: int) -> int:
    """Return how many of `size` 4-bit codes stand for zero."""
    zero = (weight.quant_state.code == 0).long()
    byte = torch.arange(256, device=zero.device)
    counts = torch.bincount(weight.data.flatten(), minlength=256)
    return int((counts * (zero[byte >> 4] + zero[byte & 15])).sum()) - size % 2  # an odd last byte is filled up


def _shaped_int8_(module: Any, shape: tuple[int, int]) -> bool:
    """Give the codes their shape back, if they are sound."""
    weight, scales = module.weight, getattr(module.weight, "SCB", None)
    if not _is(weight, torch.int8, shape[0] * shape[1]) or not _is_row(scales, torch.float32, shape[0]):
        return False
    weight.data = weight.data.view(shape)
    weight.CB = weight.data
    return True


def _sound_4bit(module: Any, shape: tuple[int, int], form: BnbFormat) -> bool:
    weight, state = module.weight, getattr(module.weight, "quant_state", None)
    size = shape[0] * shape[1]
    if state is None or state.blocksize not in BLOCK_SIZES or state.quant_type != form.mode:
        return False
    blocks = -(-size // state.blocksize)
    return (
        tuple(state.shape or ()) == shape
        and state.nested == form.double_quant
        and isinstance(state.dtype, torch.dtype)
        and state.dtype.is_floating_point
        and _is(weight, torch.uint8, (size + 1) // 2)
        and tuple(weight.shape) == ((size + 1) // 2, 1)  # as the library keeps them, and saves them again
        and _is_row(state.code, torch.float32, 16)
        and _is_row(state.absmax, torch.uint8 if state.nested else torch.float32, blocks)
        and (not state.nested or _sound_nested(state.state2, blocks))
    )


def _sound_nested(state: Any, blocks: int) -> bool:
    return (
        state.blocksize == _NESTED_BLOCK
        and _is_row(state.code, torch.float32, 256)
        and _is_row(state.absmax, torch.float32, -(-blocks // _NESTED_BLOCK))
    )


def _is(tensor: Any, dtype: torch.dtype, numel: int) -> bool:
    return isinstance(tensor, Tensor) and tensor.dtype is dtype and tensor.numel() == numel


def _is_row(tensor: Any, dtype: torch.dtype, numel: int) -> bool:
    return _is(tensor, dtype, numel) and tensor.ndim == 1
