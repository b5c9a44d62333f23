"""What the files of a checkpoint hold, by their headers alone: checked against the skeleton before a value is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ..core.errors import CheckpointError
from ..core.families import base_prefix, label_layers
from ..core.foreign_internals import children_of, is_initialized, is_stored, may_be_left_out, may_be_missing
from ..modules.bnb import is_bnb
from ..modules.factorized import Factorized
from ..modules.hashed import HashedEmbedding
from ..modules.separable import SeparableConv2d
from ..modules.storage import AUXILIARY, Packed
from .digests import ANY, dtype_name
from .paths import POOLER, relative
from .stated import short
from .structure import skeleton_of

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_OURS = (Packed, Factorized, HashedEmbedding, SeparableConv2d)  # layers of which a file holds exactly what they are of
_REPAIR = "the file is damaged or incomplete: download or copy it again"


@dataclass(frozen=True)
class Header:
    """What a file says of one tensor."""

    file: str
    dtype: torch.dtype | None  # None: one that no checkpoint of ours holds
    shape: tuple[int, ...]


@dataclass
class Contents:
    """What was found in the files, by name in the model; `known` is false where there was no file to look into."""

    known: bool = False
    found: set[str] = field(default_factory=set)
    refitted: set[str] = field(default_factory=set)  # of another shape than the model's


def read_contents(model: nn.Module, files: Sequence[str] | None, dtypes: Mapping[str, str] | None) -> Contents:
    """Compare the headers of `files` with the skeleton `model`; `dtypes` are those that floats were saved in.

    Raises CheckpointError for a dtype or, of a layer of ours, a shape other than the structure asks for, for a tensor
    too many in such a layer, for one that is there twice, and for a file that is damaged or no safetensors.
    """
    if not files:
        return Contents()
    contents, headers = Contents(known=True), _headers(files)
    strays: dict[str, Header] = {}
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    for name, header, cut in _named(model, headers):
        tensor = tensors.get(name)
        if tensor is None:
            strays[name] = header
            _refuse_stray(model, name, header)
        elif cut:  # or joined: the file has it in another shape, and transformers says if parts are missing
            contents.found.add(name)
        else:
            if name in contents.found:
                raise CheckpointError(f"{name} is stored twice: {_REPAIR}")
            contents.found.add(name)
            if _check(model, name, tensor, header, dtypes):
                contents.refitted.add(name)
    _refuse_beside_head(model, contents, strays)
    _refuse_untied(model, {name for name in contents.found if tensors[name].numel()})  # empty ones stand beside others
    return contents


def require_dtype(files: Sequence[str] | None, dtypes: Mapping[str, str] | None) -> None:
    """Raise CheckpointError when the config beside `files` names another dtype than any that floats were saved in."""
    file = Path(files[0]).with_name("config.json") if files and dtypes else None
    if file is None or not file.is_file():
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    stated = config.get("dtype", config.get("torch_dtype"))
    if stated is not None and dtypes and stated not in dtypes.values():
        saved = ", ".join(sorted(set(dtypes.values())))
        raise CheckpointError(
            f"config.json says dtype={short(stated)}, but the checkpoint was saved in {saved}: download or copy "
            "config.json again, and ask for another dtype when loading"
        )


def require_ties_alike(model: Any) -> None:
    """Raise CheckpointError where a layer would share the weight of one that is stored in another way than it computes.

    So it is with a head that the checkpoint's class does not have and that gives the logits by the token embeddings.
    """
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in ties.items():
        if not (target.endswith(".weight") and source.endswith(".weight")):
            continue
        owners = [list(_owners(model, name.removesuffix(".weight"))) for name in (target, source)]
        if all(owners) and len({isinstance(each[-1], _OURS) for each in owners}) > 1:
            saved = " or ".join(map(str, getattr(model.config, "architectures", None) or ())) or "the class it is of"
            raise CheckpointError(
                f"{target.rpartition('.')[0]} of a {type(model).__name__} shares its weight with "
                f"{source.rpartition('.')[0]}, of which only one is compressed in this checkpoint: load it as {saved}"
            )


def require_all(model: nn.Module, contents: Contents) -> None:
    """Raise CheckpointError when a tensor of the model, now loaded, was in no file.

    But for what another class than the checkpoint's own has of its own, and a head that is to be another.
    """
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= {n: b for n, b in _stored_buffers(model) if b.is_floating_point()}
    there = {id(t) for n, t in tensors.items() if n in contents.found or is_initialized(t)}
    missing = [n for n, t in tensors.items() if id(t) not in there and not _may_lack(model, n, contents)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"the checkpoint has no {', '.join(missing[:3])}{more}: {_REPAIR}")


def _headers(files: Sequence[str]) -> dict[str, Header]:
    found: dict[str, Header] = {}
    for file in files:
        if not str(file).endswith(".safetensors"):
            raise CheckpointError(f"{file} is no safetensors file, and a compressed checkpoint is of nothing else")
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    tensor = opened.get_slice(name)
                    if name in found:
                        raise CheckpointError(f"{name} is in {found[name].file} and in {file}: {_REPAIR}")
                    found[name] = Header(str(file), _DTYPES.get(tensor.get_dtype()), tuple(tensor.get_shape()))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged ({error}): download or copy it again") from error
    return found


def _named(model: Any, headers: Mapping[str, Header]) -> Iterator[tuple[str, Header, bool]]:
    """Yield for each tensor its name in the model, as transformers would find it, and if it is cut or joined for it.

    Names of which the model has none are as they would be; what another library adds beside a weight is left out.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    targets = {pattern: c.target_patterns for c in converters for pattern in c.source_patterns}
    state = model.state_dict()
    where = (model.base_model_prefix, state)
    for stored, header in headers.items():
        name, pattern = rename_source_key(stored, renamings, converters, *where)
        if name not in state and stored in state:
            name, pattern = rename_source_key(stored, [], [], *where)
        if pattern is None:
            yield name, header, False
        else:
            first, *_ = targets[pattern]
            yield from ((name.replace(first, target), header, True) for target in targets[pattern])


def _check(model: Any, name: str, tensor: torch.Tensor, header: Header, dtypes: Mapping[str, str] | None) -> bool:
    """Refuse another dtype than the structure says; return whether the shape is another one, which a head's may be."""
    owner = model.get_submodule(name.rpartition(".")[0])
    wanted = tensor.dtype if not tensor.is_floating_point() else _float_dtype(relative(model, name), dtypes or {})
    if wanted is None or (is_bnb(owner) and tensor.is_floating_point()):
        right = header.dtype is not None and header.dtype.is_floating_point
    else:
        right = header.dtype == wanted
    if not right:
        found = "of a dtype that is not known" if header.dtype is None else dtype_name(header.dtype)
        saved = "a float" if wanted is None else dtype_name(wanted)
        raise CheckpointError(f"{name} is {found} in the file, but was saved as {saved}: {_REPAIR}")
    if is_bnb(owner) or header.shape == tuple(tensor.shape):  # that library packs in its own way, checked when loaded
        return False
    if not _heads(model, name):
        shapes = f"{list(header.shape)} in the file, but {list(tensor.shape)} in the structure"
        raise CheckpointError(f"{name} has the shape {shapes}: {_REPAIR}")
    return True


def _float_dtype(path: str, dtypes: Mapping[str, str]) -> torch.dtype | None:
    """Return the dtype that floats at `path` were saved in, None where the checkpoint does not say."""
    stated = dtypes.get(path, dtypes.get(ANY))
    return None if stated is None else getattr(torch, stated)


def _refuse_stray(model: Any, name: str, header: Header) -> None:
    """Raise CheckpointError for a tensor that the model has no place for.

    A model of another class than the checkpoint's own has none for the head: there it is one of a layer of ours, or of
    such a layer where there is none.
    """
    if _is_own(model) and not _heads(model, name) and not _is_another_librarys(model, name):
        raise CheckpointError(_too_many(name, header))
    prefix = base_prefix(model)
    for stated in (name, prefix + name, name.removeprefix(f"{model.base_model_prefix}.")):
        path, _, last = stated.rpartition(".")
        owners = list(_owners(model, path))
        if not owners or _heads(model, stated) or (_is_head(model, stated) and not _is_own(model)):
            continue
        nearest, whole = owners[-1], len(owners) == path.count(".") + 1
        if isinstance(nearest, _OURS) or (whole and last in AUXILIARY):
            raise CheckpointError(f"{stated} is in {header.file}, but the structure has no such tensor: {_REPAIR}")


def _refuse_beside_head(model: Any, contents: Contents, strays: Mapping[str, Header]) -> None:
    """Raise CheckpointError for a tensor too many in a head that is the file's: of one for other labels all may be."""
    heads = tuple(f"{path}." for path in label_layers(model))
    own = {name for name in model.state_dict() if name.startswith(heads)}
    if own <= contents.found and not own & contents.refitted:
        for name in strays:
            if name.startswith(heads) and not _is_another_librarys(model, name):
                raise CheckpointError(_too_many(name, strays[name]))


def _too_many(name: str, header: Header) -> str:
    return f"{name} is in {header.file}, but the model has no such tensor: {_REPAIR}"


def _is_another_librarys(model: Any, name: str) -> bool:
    """Say whether a tensor is one that transformers leaves out, or belongs to a layer of bitsandbytes."""
    left_out = any(re.search(pattern, name) for pattern in may_be_left_out(model))
    return left_out or any(map(is_bnb, _owners(model, name.rpartition(".")[0])))


def _owners(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """Yield the modules on the way down to `path`, as far as there are any."""
    module = model
    for part in path.split("."):
        child = children_of(module).get(part)
        if child is None:
            return
        module = child
        yield module


def _refuse_untied(model: Any, found: set[str]) -> None:
    """Raise CheckpointError where tensors that are one are stored twice: with other values they would be two."""
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in ties.items():
        if target in found and source in found:
            raise CheckpointError(f"{target} and {source} are one tensor, and stored as two: {_REPAIR}")


def _may_lack(model: Any, name: str, contents: Contents) -> bool:
    """Say whether the file may lack a tensor: it is of a head or a part that is new, or transformers expects that."""
    if isinstance(model.get_submodule(name.rpartition(".")[0]), Packed):
        return False  # it would be memory as it was found
    if not contents.known:  # the caller gave the tensors
        return True
    if any(re.search(pattern, name) for pattern in may_be_missing(model)):
        return True
    if _heads(model, name) and any(_heads(model, other) for other in contents.refitted):
        return True  # a layer for other labels, which is asked for by name
    path = relative(model, name)
    top = path.removeprefix("/").partition(".")[0]
    if top == POOLER:
        return not any(relative(model, other).removeprefix("/").startswith(f"{POOLER}.") for other in contents.found)
    if _is_own(model):
        return False
    return _is_head(model, name) or path not in _names_of_own_class(model)


def _names_of_own_class(model: Any) -> set[str]:
    """Return the tensors, as a checkpoint states them, of the class that was saved; none where it is not known."""
    for stated in getattr(model.config, "architectures", None) or ():
        if isinstance(cls := getattr(transformers, str(stated), None), type):
            own = skeleton_of(cls, model.config)
            return {relative(own, name) for name in own.state_dict()}
    return set()


def _is_own(model: Any) -> bool:
    """Say whether the model is of the class that the checkpoint was saved from."""
    return type(model).__name__ in (getattr(model.config, "architectures", None) or ())


def _is_head(model: nn.Module, name: str) -> bool:
    return relative(model, name).startswith("/")


def _heads(model: Any, name: str) -> bool:
    return name.startswith(tuple(f"{path}." for path in label_layers(model)))


def _stored_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module.named_buffers(recurse=False):
            if is_stored(module, name):
                yield f"{path}.{name}" if path else name, buffer
