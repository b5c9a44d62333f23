"""The JSON spec of each module kind: read off a module, checked against what it replaces, built again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from ..core.errors import CheckpointError
from ..core.families import has_module
from ..core.foreign_internals import parameters_of
from ..ops.codebooks import Codebook
from ..ops.hashing import Combine
from ..ops.quantization import Grid
from .adapted import Adapted, AdaptedConv1D, AdaptedLinear
from .factorized import CPConv2d, Factorized, FactorizedConv1D, FactorizedEmbedding, FactorizedLinear, TuckerConv2d
from .hashed import HashedEmbedding
from .own_tables import PackedTable, has_own_lookup, packed_table
from .packed import FORMS, Form, PackedEmbedding
from .packed_parameters import PREFIX, PackedParameter, expect_parameter_
from .separable import SeparableConv2d
from .storage import Packed

Spec = Mapping[str, Any]
PARAMETER = "packed_parameter"  # the kind of what is no layer, and has a shape instead of a layer's sizes


@dataclass(frozen=True)
class Kind:
    """How one class of modules is written down and built again."""

    name: str
    cls: type[nn.Module]
    sizes: tuple[str, ...]  # attributes that are widths: at least 1, at most those of the layer replaced
    flags: tuple[str, ...]  # other attributes
    replaces: tuple[type[nn.Module], ...]
    build: Callable[[Spec, torch.dtype], nn.Module]
    optional: tuple[str, ...] = ()  # keys that may be left out: how a packed weight is stored
    ranks: tuple[str, ...] = ()  # attributes that are inner widths of factors, which the layer replaced does not have


_NAMES = {nn.Linear: "linear", nn.Embedding: "embedding", Conv1D: "conv1d", nn.Conv2d: "conv2d"}
_FREE = (
    "bias",
    "padding_idx",
    "buckets",
    "combine",
    "multiplier",
)  # flags a checkpoint may change; the others are what the config says
_LONGEST = 2**31  # rows or columns of a layer, and so of what shares a scale or a codebook
_DEFAULTS = {field.name: field.default for field in fields(Grid)}
_BOOK = {field.name: field.default for field in fields(Codebook)}


def _plain(form: Form) -> Callable[[Spec, torch.dtype], nn.Module]:
    names = (*form.sizes, *form.others)
    return lambda spec, dtype: form.plain(**{n: _tuple(spec[n]) for n in names}).to(dtype)


def _packed(form: Form) -> Callable[[Spec, torch.dtype], nn.Module]:
    cls: Any = form.packed
    names = (*form.sizes, *form.others)
    return lambda spec, dtype: cls(
        **{n: _tuple(spec[n]) for n in names},
        **{n: spec[n] for n in ("nonzeros", "input_bits") if n in spec},
        dtype=dtype,
        grid=_values(spec),
    )


def _kinds(form: Form) -> list[Kind]:
    name, both = _NAMES[form.plain], (form.plain, form.packed)
    optional = ("grid", "codebook", "nonzeros", *(["input_bits"] if form.packed is not PackedEmbedding else []))
    return [
        Kind(name, form.plain, form.sizes, form.others, both, _plain(form)),
        Kind(f"packed_{name}", form.packed, form.sizes, form.others, both, _packed(form), optional),
    ]


def _layer_norm(spec: Spec, dtype: torch.dtype) -> nn.Module:
    return nn.LayerNorm(spec["normalized_shape"], spec["eps"], bias=spec["bias"], dtype=dtype)


KINDS = {kind.name: kind for form in FORMS for kind in _kinds(form)}
KINDS["hashed_embedding"] = Kind(
    "hashed_embedding",
    HashedEmbedding,
    ("num_embeddings", "embedding_dim"),
    ("padding_idx", "buckets", "combine"),
    (nn.Embedding, HashedEmbedding),
    lambda spec, dtype: HashedEmbedding(**{k: v for k, v in spec.items() if k != "kind"}, dtype=dtype),
)
KINDS["separable_conv2d"] = Kind(
    "separable_conv2d",
    SeparableConv2d,
    ("in_channels", "out_channels"),
    ("kernel_size", "stride", "padding", "dilation", "multiplier", "bias"),
    (nn.Conv2d,),
    lambda spec, dtype: SeparableConv2d(**{k: _tuple(v) for k, v in spec.items() if k != "kind"}).to(dtype),
)
KINDS["packed_table"] = Kind(  # what its class does beside looking rows up is the config's to say
    "packed_table",
    PackedTable,
    (),
    ("num_embeddings", "embedding_dim"),
    (nn.Embedding,),
    lambda spec, dtype: PackedEmbedding(spec["num_embeddings"], spec["embedding_dim"], dtype=dtype),
    ("grid", "codebook", "nonzeros"),
)
KINDS["layer_norm"] = Kind(
    "layer_norm", nn.LayerNorm, ("normalized_shape",), ("eps", "bias"), (nn.LayerNorm,), _layer_norm
)
KINDS["batch_norm"] = Kind(
    "batch_norm",
    nn.BatchNorm2d,
    ("num_features",),
    ("eps", "momentum", "affine", "track_running_stats"),
    (nn.BatchNorm2d,),
    lambda spec, dtype: nn.BatchNorm2d(**{k: v for k, v in spec.items() if k != "kind"}, dtype=dtype),
)
KINDS["identity"] = Kind(  # a norm that was folded into the convolution before it
    "identity", nn.Identity, (), (), (nn.BatchNorm2d,), lambda spec, dtype: nn.Identity()
)


def _composite(name: str, cls: Any, plain: type[nn.Module], *ranks: str) -> Kind:
    form = next(form for form in FORMS if form.plain is plain)
    sizes, flags = ([n for n in names if n != "groups"] for names in (form.sizes, form.others))

    def make(spec: Spec, dtype: torch.dtype) -> nn.Module:
        return cls(**{n: _tuple(spec[n]) for n in (*sizes, *flags, *ranks)}, dtype=dtype)

    return Kind(name, cls, tuple(sizes), tuple(flags), (plain,), make, ranks=ranks)


for _kind in (
    _composite("factorized_linear", FactorizedLinear, nn.Linear, "rank"),
    _composite("factorized_conv1d", FactorizedConv1D, Conv1D, "rank"),
    _composite("factorized_embedding", FactorizedEmbedding, nn.Embedding, "rank"),
    _composite("tucker_conv2d", TuckerConv2d, nn.Conv2d, "rank_in", "rank_out"),
    _composite("cp_conv2d", CPConv2d, nn.Conv2d, "rank"),
    _composite("adapted_linear", AdaptedLinear, nn.Linear, "rank"),
    _composite("adapted_conv1d", AdaptedConv1D, Conv1D, "rank"),
):
    KINDS[_kind.name] = _kind


def is_composite(module: nn.Module) -> bool:
    """Say whether a module is made of layers that have specs of their own."""
    return isinstance(module, Factorized | Adapted)


def spec_of(module: nn.Module) -> dict[str, Any] | None:
    """Return the spec of a module, or None when its class is none of ours to change; training wrappers do not count."""
    cls = parametrize.type_before_parametrizations(module)
    if cls is nn.Conv2d and module.padding_mode != "zeros":
        return None
    if cls is nn.LayerNorm and (module.weight is None or len(module.normalized_shape) != 1):  # type: ignore[arg-type]
        return None
    if cls is nn.BatchNorm2d and (module.weight is None or module.running_mean is None):
        return None
    if isinstance(module, PackedParameter):
        return {"kind": PARAMETER, "shape": list(module.shape), **_storage_of(module)}
    cls = PackedTable if issubclass(cls, PackedTable) else cls
    for kind in KINDS.values():
        if cls is kind.cls:
            spec: dict[str, Any] = {"kind": kind.name, **{name: _size(module, name) for name in kind.sizes}}
            spec |= {name: _flag(module, name) for name in (*kind.flags, *kind.ranks)}
            return spec | (_storage_of(module) if isinstance(module, Packed) else {})
    return None


def build(spec: Spec, old: nn.Module, where: str) -> nn.Module:
    """Build the module `spec` describes in place of `old`, on its device and in its dtype.

    Raises CheckpointError for a kind that is not known, a key that does not belong, and a size above what `old` has:
    a checkpoint may shrink a model, so nothing in a file can make the loader allocate more than the config asks for.
    """
    kind = KINDS.get(str(spec.get("kind")))
    known = kind is not None and (has_own_lookup(old) if kind.cls is PackedTable else spec_of(old) is not None)
    if kind is None or not known or not isinstance(old, kind.replaces):
        raise CheckpointError(f"{where}: {spec.get('kind')!r} can't stand for a {type(old).__name__}")
    if set(spec) - set(kind.optional) != {"kind", *kind.sizes, *kind.flags, *kind.ranks}:
        raise CheckpointError(f"{where}: keys {sorted(spec)} do not describe a {kind.name}")
    for name in kind.sizes:
        size, limit = spec[name], _size(old, name)
        if type(size) is not int or not 1 <= size <= limit:
            raise CheckpointError(f"{where}: {name}={size!r} is not between 1 and the config's {limit}")
    _check_flags(kind, spec, old, where)
    weight: Any = old.weight
    if kind.ranks:
        _check_ranks(kind, spec, weight, where)
    elif issubclass(kind.cls, Packed) or kind.cls in _NAMES:
        _check_storage(kind, spec, _numel(spec, old, where), where)
    with torch.device(weight.device):
        if kind.cls is PackedTable:
            return packed_table(old, _values(spec), spec.get("nonzeros"), weight.dtype)
        return kind.build(spec, weight.dtype).train(old.training)


def build_parameter_(model: nn.Module, path: str, spec: Spec) -> None:
    """Make room in `model` for the packed parameter that `spec` describes, in place of the config's.

    Raises CheckpointError for one the model does not have, or not in this shape, and for keys that do not belong.
    """
    where, _, last = path.rpartition(".")
    name = last.removeprefix(PREFIX)
    owner = model.get_submodule(where) if has_module(model, where) else nn.Module()
    parameter = parameters_of(owner).get(name)
    if parameter is None or not last.startswith(PREFIX) or not parameter.is_floating_point() or parameter.ndim < 2:
        raise CheckpointError(f"the checkpoint describes {path!r}, and this model has no such parameter")
    if set(spec) - {"grid"} != {"kind", "shape"} or spec["shape"] != list(parameter.shape):
        raise CheckpointError(f"{path}: {dict(spec)} does not describe a parameter {tuple(parameter.shape)}")
    try:
        grid = _grid(spec.get("grid", {}))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: grid={spec['grid']!r} is none that is known: {error}") from error
    if grid is None:
        raise CheckpointError(f"{path}: without a grid the parameter would not be packed")
    expect_parameter_(owner, name, grid)


def _check_flags(kind: Kind, spec: Spec, old: nn.Module, where: str) -> None:
    if "bias" in kind.flags and type(spec["bias"]) is not bool:
        raise CheckpointError(f"{where}: bias={spec['bias']!r} is neither true nor false")
    padding = spec.get("padding_idx")
    if padding is not None and (type(padding) is not int or not 0 <= padding < spec["num_embeddings"]):
        raise CheckpointError(f"{where}: padding_idx={padding!r} is not a row of the table")
    if "buckets" in kind.flags:
        _check_hashed(spec, where)
    if "multiplier" in spec:
        most, multiplier = math.prod(old.kernel_size), spec["multiplier"]  # type: ignore[arg-type]
        if old.groups != 1 or type(multiplier) is not int or not 1 <= multiplier <= most:
            raise CheckpointError(f"{where}: multiplier={multiplier!r} is not between 1 and {most}, for one group")
    for name in kind.flags:
        if name not in _FREE and not _same(spec[name], _flag(old, name)):
            raise CheckpointError(f"{where}: {name}={spec[name]!r} is not the config's {_flag(old, name)!r}")


def _check_hashed(spec: Spec, where: str) -> None:
    buckets, rows = spec["buckets"], spec["num_embeddings"]
    if type(buckets) is not int or not 1 <= buckets <= rows or spec["combine"] not in get_args(Combine):
        raise CheckpointError(f"{where}: buckets={buckets!r}, combine={spec['combine']!r} describe no pair of tables")


def _check_ranks(kind: Kind, spec: Spec, weight: Any, where: str) -> None:
    """Raise CheckpointError for ranks whose factors would hold more numbers than the layer they are beside."""
    for name in kind.ranks:
        if type(spec[name]) is not int or not 1 <= spec[name] <= weight.numel():
            raise CheckpointError(f"{where}: {name}={spec[name]!r} is not a rank of a {tuple(weight.shape)} weight")
    with torch.device("meta"):
        made = kind.build(spec, weight.dtype)
    factors = [p for name, p in made.named_parameters() if not name.endswith("bias") and not name.startswith("base.")]
    if sum(p.numel() for p in factors) > weight.numel():
        raise CheckpointError(f"{where}: its factors are larger than the config's {tuple(weight.shape)} weight")


def _numel(spec: Spec, old: nn.Module, where: str) -> int:
    """Return the number of weights; CheckpointError when fewer groups of a convolution would make it grow."""
    sizes = [value for name, value in spec.items() if name in ("in_features", "out_features", "nf", "nx")]
    sizes += [value for name, value in spec.items() if name in ("num_embeddings", "embedding_dim")]
    if "in_channels" in spec:
        groups, (height, width) = spec.get("groups", 1), spec["kernel_size"]
        inner = spec["in_channels"] // groups
        if spec["in_channels"] % groups or spec["out_channels"] % groups or inner > old.in_channels // old.groups:  # type: ignore[operator]
            raise CheckpointError(f"{where}: {groups} groups do not fit {spec['in_channels']} channels")
        sizes = [inner, spec["out_channels"], height, width]
    total = 1
    for size in sizes:
        total *= size
    return total


def _check_storage(kind: Kind, spec: Spec, total: int, where: str) -> None:
    try:
        grid = _values(spec)
    except (TypeError, ValueError) as error:
        name = "codebook" if "codebook" in spec else "grid"
        raise CheckpointError(f"{where}: {name}={str(spec[name])[:80]} is none that is known: {error}") from error
    if grid is not None and any(type(size) is int and size > _LONGEST for size in vars(grid).values()):
        raise CheckpointError(f"{where}: {grid} names more rows or columns than any layer has")
    if isinstance(grid, Codebook):
        _check_codebook(kind, spec, grid, total, where)
    nonzeros = spec.get("nonzeros")
    if "nonzeros" in spec and (type(nonzeros) is not int or not 1 <= nonzeros <= total):
        raise CheckpointError(f"{where}: nonzeros={nonzeros!r} is not between 1 and the {total} weights")
    if "input_bits" in spec and (type(spec["input_bits"]) is not int or spec["input_bits"] not in (2, 4, 8)):
        raise CheckpointError(f"{where}: input_bits={spec['input_bits']!r} is none of 2, 4 and 8")
    if grid is None and nonzeros is None:
        raise CheckpointError(f"{where}: neither a grid nor a number of nonzeros: the layer would not be packed")


def _check_codebook(kind: Kind, spec: Spec, book: Codebook, total: int, where: str) -> None:
    """Raise CheckpointError for a codebook that does not fit the layer, or is larger than the weight it stands for."""
    rows = next(spec[name] for name in ("out_features", "nf", "out_channels", "num_embeddings") if name in spec)
    columns = total // rows
    if not book.fits(columns) or (book.dim > 1 and "nonzeros" in spec):
        raise CheckpointError(f"{where}: codewords of {book.dim} numbers do not fit {columns} columns of a {kind.name}")
    if book.numel(rows, columns) > max(total, 2**book.bits * book.dim):
        raise CheckpointError(f"{where}: its codebooks would hold more numbers than the weight has")


def _storage_of(module: Packed) -> dict[str, Any]:
    """Return what differs from 8 bits symmetric per row, with every zero stored."""
    spec: dict[str, Any] = {}
    if module.grid is None:
        spec["grid"] = None
    elif isinstance(module.grid, Codebook):
        spec["codebook"] = {n: v for n, v in vars(module.grid).items() if v != _BOOK[n]}
    elif module.grid != Grid():
        spec["grid"] = {n: v for n, v in vars(module.grid).items() if v != _DEFAULTS[n]}
    optional = {"nonzeros": module.nonzeros, "input_bits": module.input_bits}
    return spec | {name: value for name, value in optional.items() if value is not None}


def _values(spec: Spec) -> Grid | Codebook | None:
    """Return the values a weight takes; TypeError or ValueError for what describes none."""
    if "codebook" not in spec:
        return _grid(spec.get("grid", {}))
    if "grid" in spec or not isinstance(spec["codebook"], Mapping):
        raise TypeError("not a mapping, or beside a grid")
    return Codebook(**spec["codebook"])


def _grid(spec: Any) -> Grid | None:
    if spec is None:
        return None
    if not isinstance(spec, Mapping):
        raise TypeError("not a mapping")
    return Grid(**spec)


def _size(module: nn.Module, name: str) -> Any:
    """Return a width; a norm keeps its one in a tuple."""
    value = getattr(module, name)
    return value[0] if isinstance(value, tuple) else value


def _flag(module: nn.Module, name: str) -> Any:
    if name == "bias":
        return getattr(module, "bias", None) is not None
    value = getattr(module, name)
    return list(value) if isinstance(value, tuple) else value


def _same(ours: Any, theirs: Any) -> bool:
    """Compare values of a file in their types too: 1, 1.0 and true are not the same."""
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return type(ours) is type(theirs) and bool(ours == theirs)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
