"""Tensors that lie entropy-coded in a file: coded when a model is saved, decoded after it was loaded.

`quantization_config.coded` says for each how long its stream is, so that the skeleton has a place for it; what it
decodes to is what the skeleton says without it, and never more. In memory nothing is coded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError
from ..core.families import label_layers
from ..core.foreign_internals import parameters_of, say_initialized_
from ..modules.at_rest import SAVING, Streams, codable, code_at_rest_, code_widths, coded_at_rest
from ..modules.ties import keep_biases_, own_ties
from ..ops.coding import decode
from .as_stored import keeps_dtypes
from .paths import absolute, optional, relative

_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Entry = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """What a stream in the skeleton stands for."""

    shape: torch.Size
    stored: torch.dtype  # as it was coded
    dtype: torch.dtype  # as it is to be used
    bits: int | None
    trains: bool


def encode_state(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Entry]]:
    """Return `state` with what is to lie coded in the file, and the entries for the config, by path.

    That is what gets smaller by it, if the model is to be coded at rest. And of tensors that are shared in a way the
    config alone does not say, one, in any case: its shape then fits no layer of a stock model, which would otherwise
    load with the others at random.
    """
    widths, witness = code_widths(model), _witness(model)
    streams = Streams(widths, witness, all_that_shrink=coded_at_rest(model))
    names = codable(model)
    new, entries = dict(state), {}
    for name, tensor in state.items():
        if name in names and (stream := streams.of(name, tensor)) is not None:
            new[name], entries[relative(model, name)] = stream, _entry(tensor, stream, widths.get(name))
    return new, entries


def expect_streams_(model: nn.Module, entries: Mapping[str, Any]) -> dict[str, Place]:
    """Give the skeleton a parameter for every stream, in place, and return what each stands for, by name.

    Raises CheckpointError for a name the model lacks and for a stream longer than what it stands for.
    """
    places = {}
    if entries:
        keep_biases_(model)
    for path, entry in entries.items():
        name = absolute(model, path)
        if name is None:
            continue
        try:
            old = model.get_parameter(name)
        except AttributeError as error:
            if optional(model, path):
                continue
            raise CheckpointError(f"the checkpoint codes {name!r}, which this model does not have") from error
        places[name] = place = _place(old, entry, name)
        length = entry["bytes"]
        if type(length) is not int or not 1 <= length <= old.numel() * place.stored.itemsize + SAVING:
            hint = _labels(model, name)
            raise CheckpointError(f"{name}: a coded stream of {length!r} bytes is not one of this weight{hint}")
        stream = torch.empty(length, dtype=torch.uint8, device=old.device)
        _set(model, name, nn.Parameter(stream, requires_grad=False))
        owner = model.get_submodule(name.rpartition(".")[0])
        if name.endswith(".weight") and not list(owner.buffers(recurse=False)):
            # some models ask for the shape of a layer's weight before they look whether it was loaded, and a stream has
            # no rows; what has more than a weight and a bias has to be initialised, each loaded tensor says it is
            say_initialized_(owner)
    return places


def decode_streams_(model: nn.Module, places: Mapping[str, Place]) -> None:
    """Put what they stand for in place of the streams read from a file; tied ones stay tied.

    Raises CheckpointError for a stream that is damaged.
    """
    made: dict[int, nn.Parameter] = {}
    for name, place in places.items():
        stream = model.get_parameter(name)
        if id(stream) not in made:
            made[id(stream)] = _decoded(stream, place, name, _labels(model, name))
        _set(model, name, made[id(stream)])
    if set(places) - _witness(model):
        code_at_rest_(model)


def _witness(model: nn.Module) -> frozenset[str]:
    """Return the names of one shared weight; none where nothing is shared, or a shared one is packed."""
    ties = dict(sorted(own_ties(model).items()))  # a file may have them in another order
    if any(model.get_parameter(name).numel() == 0 for name in ties):
        return frozenset()
    source = next((source for name, source in ties.items() if model.get_parameter(name).ndim > 1), None)
    source = next(iter(ties.values()), None) if source is None else source
    return frozenset() if source is None else frozenset({source, *(t for t, s in ties.items() if s == source)})


def _entry(tensor: Tensor, stream: Tensor, bits: int | None) -> Entry:
    entry: Entry = {"bytes": len(stream)}
    if tensor.is_floating_point():
        entry["dtype"] = str(tensor.dtype).removeprefix("torch.")
    return entry if bits is None else entry | {"bits": bits}


def _place(old: nn.Parameter, entry: Any, name: str) -> Place:
    if not isinstance(entry, Mapping) or not {"bytes"} <= set(entry) <= {"bytes", "dtype", "bits"}:
        raise CheckpointError(f"{name}: {entry!r} does not describe a coded stream")
    bits, stored = entry.get("bits"), old.dtype
    if "dtype" in entry or old.is_floating_point():
        if str(entry.get("dtype")) not in _FLOATS or not old.is_floating_point():
            raise CheckpointError(f"{name}: dtype={entry.get('dtype')!r} is none of {', '.join(_FLOATS)}")
        stored = _FLOATS[entry["dtype"]]
    if bits is not None and (type(bits) is not int or not 1 <= bits <= 8 or stored.itemsize > 1):
        raise CheckpointError(f"{name}: bits={bits!r} is not the width of a packed code")
    return Place(old.shape, stored, old.dtype, bits, old.requires_grad)


def _labels(model: nn.Module, name: str) -> str:
    """Return the likely reason when a head's stream, which none is given any more, does not fit."""
    if not name.startswith(tuple(f"{path}." for path in label_layers(model))):
        return ""
    return "; load it with as many labels as it was saved with, and exchange the head then"


def _decoded(stream: Tensor, place: Place, name: str, hint: str) -> nn.Parameter:
    if stream.dtype != torch.uint8 or stream.is_meta:
        raise CheckpointError(f"{name}: the file holds no coded stream, though its config says so")
    try:
        values = decode(stream, place.shape, place.stored, place.bits)
    except ValueError as error:
        raise CheckpointError(f"{name}: its coded stream can't be read: {error}{hint}") from error
    dtype = place.stored if keeps_dtypes() else place.dtype
    return nn.Parameter(values.to(stream.device, dtype), requires_grad=place.trains)


def _set(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, last = name.rpartition(".")
    parameters_of(model.get_submodule(path))[last] = parameter
