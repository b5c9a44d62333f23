"""Linear layers made into those of bitsandbytes: rounded as they will be while others train, then for good."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..core.errors import TargetError
from ..ops.straight_through import straight_through
from .bnb import BnbFormat, can_quantize, empty_layer, library, settle, widened
from .matrix import matrix
from .packed import PackedLinear, widen_
from .ties import refuse_shared


class BnbRounded(nn.Module):
    """Parametrization W' = dequantize(quantize(W)) once switched `on`; the gradient passes straight through."""

    on: Tensor

    def __init__(self, form: BnbFormat) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("on", torch.zeros((), dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` (out, in), when switched on with the values the quantized layer will hold."""
        if not self.on:
            return weight
        return straight_through(widened(_parameter(weight.detach(), self.form)), weight)


def quantize_bnb_(model: nn.Module, path: str, form: BnbFormat) -> None:
    """Replace the linear layer (nn.Linear or GPT-2's Conv1D) at `path` by the library's, in place; its bias stays.

    One that was pruned before is stored with its zeros, for the library has no other form. Raises TargetError for
    another kind of layer, a weight that another module shares, or one that a method computes.
    """
    module = model.get_submodule(path)
    refuse_shared(model, path)
    if is_parametrized(module):
        raise TargetError(f"{path}: two methods of this stage claim its weight; add it to the `ignore` of one")
    if isinstance(module, PackedLinear) and module.grid is None:  # pruned: its zeros are codes like others
        widen_(model, path)
        module = model.get_submodule(path)
    if not can_quantize(module):
        raise TargetError(f"{path}: a {type(module).__name__} can't be quantized by bitsandbytes; linear layers can")
    new = empty_layer(module, form)
    new.weight = _parameter(matrix(module).detach(), form, new)
    if new.bias is not None:
        new.bias = nn.Parameter(module.bias.detach(), requires_grad=False)  # type: ignore[operator]
    settle(new)
    model.set_submodule(path, new.train(module.training))


def _parameter(rows: Tensor, form: BnbFormat, module: nn.Module | None = None) -> Any:
    """Return `rows` (out, in) as the library's quantized parameter, on the same device."""
    bnb: Any = library()
    if form.mode == "int8":
        return bnb.nn.Int8Params(rows.contiguous(), requires_grad=False, has_fp16_weights=False).to(rows.device)
    return bnb.nn.Params4bit(
        rows.contiguous(),
        requires_grad=False,
        blocksize=form.block_size,
        compress_statistics=form.double_quant,
        quant_type=form.mode,
        module=module,
    ).to(rows.device)
