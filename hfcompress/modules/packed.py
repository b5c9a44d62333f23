"""Layers whose weight is stored in few bits or without its zeros, and widened when used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from ..core.errors import TargetError
from ..core.families import direct_weights
from ..core.foreign_internals import parameters_of
from ..ops.codebooks import Codebook
from ..ops.quantization import Clip, Grid, Quantized, quantize
from .matrix import matrix
from .own_tables import PackedTable, has_own_lookup, packed_table, widened_table
from .packed_parameters import widen_parameters_
from .parametrizations import own_parametrizations
from .storage import Packed
from .ties import declare_ties_, sharers

_INT8 = Grid()


class PackedLinear(Packed):
    """y = x W^T + b with W (out, in) packed, widened for the product."""

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        *,
        grid: Grid | Codebook | None = _INT8,
        nonzeros: int | None = None,
        input_bits: int | None = None,
    ) -> None:
        super().__init__(out_features, in_features, grid=grid, nonzeros=nonzeros, input_bits=input_bits, dtype=dtype)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        return F.linear(self.rounded_inputs(x), self.wide(x.dtype), self.bias)

    def extra_repr(self) -> str:
        """Describe the layer as nn.Linear does."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, {super().extra_repr()}"


class PackedConv1D(PackedLinear):
    """The same under the names of transformers' Conv1D, whose weight is (in, out): here it is packed as (out, in)."""

    def __init__(
        self,
        nf: int,
        nx: int,
        dtype: torch.dtype | None = None,
        *,
        grid: Grid | Codebook | None = _INT8,
        nonzeros: int | None = None,
        input_bits: int | None = None,
    ) -> None:
        super().__init__(nx, nf, True, dtype, grid=grid, nonzeros=nonzeros, input_bits=input_bits)
        self.nf, self.nx = nf, nx


class PackedConv2d(Packed):
    """A convolution with its kernel packed as (out, in / groups * height * width)."""

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | str = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        *,
        grid: Grid | Codebook | None = _INT8,
        nonzeros: int | None = None,
        input_bits: int | None = None,
    ) -> None:
        columns = in_channels // groups * kernel_size[0] * kernel_size[1]
        super().__init__(out_channels, columns, grid=grid, nonzeros=nonzeros, input_bits=input_bits, dtype=dtype)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, tuple(kernel_size)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels, dtype=dtype)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in, height, width) to (batch, out, …)."""
        kernel = self.wide(x.dtype).view(self.out_channels, -1, *self.kernel_size)
        return F.conv2d(
            self.rounded_inputs(x), kernel, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def extra_repr(self) -> str:
        """Describe the layer as nn.Conv2d does."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, {super().extra_repr()}"


class PackedEmbedding(Packed):
    """A table (num, dim), packed; only the rows looked up are widened."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        dtype: torch.dtype | None = None,
        *,
        grid: Grid | Codebook | None = _INT8,
        nonzeros: int | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, grid=grid, nonzeros=nonzeros, dtype=dtype)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (…) to vectors (…, dim)."""
        return self.lookup(ids)

    def extra_repr(self) -> str:
        """Describe the layer as nn.Embedding does."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {super().extra_repr()}"


@dataclass(frozen=True)
class Form:
    """A class of layers with its packed class, and the arguments that build either."""

    plain: type[nn.Module]
    packed: type[Packed]
    sizes: tuple[str, ...]
    others: tuple[str, ...] = ()

    def arguments(self, module: nn.Module) -> dict[str, Any]:
        """Read the arguments off a module of either class."""
        values: dict[str, Any] = {name: getattr(module, name) for name in (*self.sizes, *self.others)}
        return values | ({"bias": module.bias is not None} if "bias" in self.others else {})


FORMS = (
    Form(nn.Linear, PackedLinear, ("in_features", "out_features"), ("bias",)),
    Form(nn.Embedding, PackedEmbedding, ("num_embeddings", "embedding_dim"), ("padding_idx",)),
    Form(Conv1D, PackedConv1D, ("nf", "nx")),
    Form(
        nn.Conv2d,
        PackedConv2d,
        ("in_channels", "out_channels", "groups"),
        ("kernel_size", "stride", "padding", "dilation", "bias"),
    ),
)
TABLE = next(form for form in FORMS if form.plain is nn.Embedding)


def is_table(module: nn.Module) -> bool:
    """Say whether a layer, plain or packed, looks rows up."""
    return isinstance(module, nn.Embedding | PackedEmbedding)


def form_of(module: nn.Module) -> Form | None:
    """Return the form of a layer, training wrappers looked through; None for one that can't be packed.

    That is one of another class, subclasses included that read the weight in their own way, and one whose weight the
    model computes by a parametrization of its own.
    """
    kind = parametrize.type_before_parametrizations(module)
    if (kind is nn.Conv2d and module.padding_mode != "zeros") or own_parametrizations(module):
        return None
    if has_own_lookup(module):
        return TABLE
    return next((form for form in FORMS if kind in (form.plain, form.packed)), None)


def weight_matrix(module: nn.Module) -> Tensor:
    """Return the weight of a plain or packed layer as (rows, columns)."""
    return module.dequantized(module.weight.dtype) if isinstance(module, Packed) else matrix(module)


def packed_like(module: nn.Module, grid: Grid | Codebook | None, nonzeros: int | None = None) -> Packed:
    """Return an empty packed layer (on the meta device, bias and mode taken over) in place of `module`.

    Raises TargetError for a layer that has no packed form.
    """
    form = form_of(module)
    if form is None:
        known = ", ".join(f.plain.__name__ for f in FORMS)
        raise TargetError(f"a {type(module).__name__} can't be packed; {known} can (subclasses compute otherwise)")
    arguments: dict[str, Any] = form.arguments(module) | {"dtype": module.weight.dtype}
    with torch.device("meta"):
        if has_own_lookup(module):
            return packed_table(module, grid, nonzeros)
        new = form.packed(**arguments, grid=grid, nonzeros=nonzeros)
    if getattr(module, "bias", None) is not None:
        new.bias = module.bias
    if isinstance(module, Packed) and (inputs := module.inputs()) is not None:
        new.set_inputs(*inputs)
    return new.train(module.training)


def pack_(
    model: nn.Module, path: str, grid: Grid = _INT8, quantized: Quantized | None = None, clip: Clip = "max"
) -> None:
    """Replace the layer at `path` by its packed form, in place, along with those its weight is tied to.

    The weight is put on `grid`, or stored as `quantized` says when that is given (shaped like `matrix(layer)`). Raises
    TargetError for another kind of module, and for a weight shared with a module the model does not declare it tied to.
    """
    group = sharers(model, path)
    module = group[0][1]
    try:
        new = packed_like(module, grid if quantized is None else quantized.grid)
    except TargetError as error:
        raise TargetError(f"{path}: {error}") from error
    if quantized is None:
        quantized = quantize(weight_matrix(module), grid, clip)
    elif tuple(quantized.codes.shape) != (new.rows, new.columns):
        raise TargetError(f"{path}: codes {tuple(quantized.codes.shape)} for a weight {(new.rows, new.columns)}")
    new.set_quantized(quantized)
    replace_(model, group, new)


def replace_(model: nn.Module, group: list[tuple[str, nn.Module]], new: Packed) -> None:
    """Put `new` in place of the first module of `group`, and for the others packed ones that share its tensors."""
    for path in direct_weights(model) & {path for path, _ in group}:
        raise TargetError(f"{path}: the model reads this weight itself, so it can't be packed; add it to `ignore`")
    made: dict[int, nn.Module] = {id(group[0][1]): new}
    for path, module in group:
        if id(module) not in made:
            twin = packed_like(module, new.grid, new.nonzeros)
            if (twin.rows, twin.columns) != (new.rows, new.columns):
                raise TargetError(f"{path}: it is tied to {group[0][0]}, but reads the weight otherwise")
            parameters_of(twin).update({n: p for n, p in parameters_of(new).items() if n != "bias"})
            made[id(module)] = twin
    for path, module in group:
        model.set_submodule(path, made[id(module)])
    declare_ties_(model)


def dequantize_(model: nn.Module) -> nn.Module:
    """Replace every packed layer by the plain float layer it computes as, in place, and return the model."""
    weights: dict[int, nn.Parameter] = {}
    made: dict[int, nn.Module] = {}
    widen_parameters_(model)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, Packed):
            if id(module) not in made:
                made[id(module)] = _widened(module, weights)
            model.set_submodule(path, made[id(module)])
    declare_ties_(model)
    return model


def check_masks(model: nn.Module) -> None:
    """Raise CheckpointError for a sparse layer whose mask, as loaded, does not count as many weights as are stored."""
    for path, module in model.named_modules():
        if isinstance(module, Packed):
            module.check(path)


def widen_(model: nn.Module, path: str) -> None:
    """Replace the packed layer at `path`, whose weight no other module shares, by its plain form, in place."""
    module: Any = model.get_submodule(path)
    model.set_submodule(path, _widened(module, {}))


def _widened(module: Packed, weights: dict[int, nn.Parameter]) -> nn.Module:
    """Return the plain layer; `weights` are those made so far by the identity of what was packed, for ties."""
    form = form_of(module)
    if form is None:
        raise TargetError(f"a {type(module).__name__} has no plain form")
    with torch.device("meta"):
        new = form.plain(**form.arguments(module))
    if id(module.weight) not in weights:
        values = module.dequantized(module.weight.dtype).detach()
        values = values.T.contiguous() if isinstance(new, Conv1D) else values.view(new.weight.shape)  # type: ignore[arg-type]
        weights[id(module.weight)] = nn.Parameter(values)
    if isinstance(module, PackedTable):
        return widened_table(module, weights[id(module.weight)])
    new.weight = weights[id(module.weight)]
    if hasattr(module, "bias"):
        new.bias = module.bias
    return new.train(module.training)
