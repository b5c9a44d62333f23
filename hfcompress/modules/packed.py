"""Layers that hold their weight in few bits and widen it when used.

The codes are stored flat on purpose: read by a loader that does not know them, their shape fits no layer, so the load
fails instead of taking codes for weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import TargetError
from ..ops.quantization import SCALE_DTYPE, dequantize, quantize_symmetric


class _Packed(nn.Module):
    """A (rows, columns) weight as int8 codes, one 16-bit scale per row; frozen, what is around it stays trainable.

    The scale's bits are kept as integers: casting a model, or loading it in another dtype, then never changes a weight,
    and the dtype of a model is that of its float parameters.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.weight = nn.Parameter(torch.empty(rows * columns, dtype=torch.int8), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(rows, dtype=torch.int16), requires_grad=False)
        self._wide: tuple[tuple[int, torch.dtype], Tensor] | None = None

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Quantize and store `weight` (rows, columns)."""
        codes, scale = quantize_symmetric(weight)
        self.weight.copy_(codes.flatten())
        self.weight_scale.copy_(scale.view(torch.int16))

    def codes(self) -> Tensor:
        """Return the int8 codes, (rows, columns)."""
        return self.weight.view(self.rows, self.columns)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight the layer computes with, (rows, columns)."""
        return dequantize(self.codes(), self.weight_scale.view(SCALE_DTYPE), dtype)

    def wide(self, dtype: torch.dtype) -> Tensor:
        """Return `dequantized`, kept between calls in inference: widening costs a small batch more than its product.

        In training it is made anew each time, so that nothing outlives a step.
        """
        if self.training or torch.is_grad_enabled():
            return self.dequantized(dtype)
        key = (self.weight._version + self.weight_scale._version, dtype)
        if self._wide is None or self._wide[0] != key:
            self._wide = (key, self.dequantized(dtype))
        return self._wide[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Packed:
        self._wide = None  # the model moves to another device
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_wide": None}  # a copy makes its own


class PackedLinear(_Packed):
    """y = x W^T + b with W (out, in) in 8 bits, widened for the product."""

    bias: nn.Parameter | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(out_features, in_features)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        return F.linear(x, self.wide(x.dtype), self.bias)

    def extra_repr(self) -> str:
        """Describe the layer as nn.Linear does."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, bits=8"


class PackedEmbedding(_Packed):
    """A table (num, dim) in 8 bits; only the rows looked up are widened, to `compute_dtype`."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.compute_dtype = dtype or torch.get_default_dtype()

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (…) to vectors (…, dim)."""
        scale = F.embedding(ids, self.weight_scale[:, None]).view(SCALE_DTYPE)
        return F.embedding(ids, self.codes()).to(self.compute_dtype) * scale.to(self.compute_dtype)

    def extra_repr(self) -> str:
        """Describe the layer as nn.Embedding does."""
        return f"{self.num_embeddings}, {self.embedding_dim}, bits=8"


def pack_(model: nn.Module, path: str) -> None:
    """Replace the linear layer or embedding at `path` by its packed form, in place.

    Raises TargetError for another kind of module, and for a weight that a module elsewhere shares.
    """
    module = model.get_submodule(path)
    refuse_shared(model, path)
    new: _Packed
    if type(module) is nn.Linear:
        new = PackedLinear(module.in_features, module.out_features, module.bias is not None, module.weight.dtype)
        if module.bias is not None:
            new.bias = module.bias
    elif type(module) is nn.Embedding:
        new = PackedEmbedding(module.num_embeddings, module.embedding_dim, module.padding_idx, module.weight.dtype)
    else:
        raise TargetError(f"{path}: a {type(module).__name__} can't be packed; nn.Linear and nn.Embedding can")
    new.to(module.weight.device)
    new.set_weight(module.weight)
    new.train(module.training)
    model.set_submodule(path, new)


def dequantize_(model: nn.Module) -> nn.Module:
    """Replace every packed layer by the plain float layer it computes as, in place, and return the model."""
    for path, module in list(model.named_modules()):
        if isinstance(module, _Packed):
            model.set_submodule(path, _widened(module))
    return model


def _widened(module: _Packed) -> nn.Module:
    new: nn.Linear | nn.Embedding
    if isinstance(module, PackedEmbedding):
        weight = module.dequantized(module.compute_dtype)
        new = nn.Embedding(module.num_embeddings, module.embedding_dim, module.padding_idx, _weight=weight)
    else:
        bias: Any = module.bias
        weight = module.dequantized(torch.float32 if bias is None else bias.dtype)
        with torch.device("meta"):
            new = nn.Linear(module.columns, module.rows, bias=False)
        new.weight, new.bias = nn.Parameter(weight), bias
    return new.train(module.training)


def refuse_shared(model: nn.Module, path: str) -> None:
    """Raise TargetError when the weight at `path` is also that of another module: packing one would untie them."""
    weight = model.get_submodule(path).weight
    for other, candidate in model.named_modules(remove_duplicate=False):
        if other != path and getattr(candidate, "weight", None) is weight:
            raise TargetError(f"{path}: its weight is shared with {other}; add both to `ignore`")
