"""Holding a large model once: weights in memory of their own, and given back when they are done with."""

from __future__ import annotations

import copy
import ctypes
import mmap
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.foreign_internals import convert_, storage_of
from ..modules.at_rest import coded_at_rest
from ..modules.plain_names import clean_state_dict
from ..modules.ties import own_ties
from .coded import encode_state

LARGE_BYTES = 1 << 30
_DONTNEED = 4  # MADV_DONTNEED of Linux: forget these pages; of a mapped file they can be read again

Range = tuple[int, int]


@torch.no_grad()
def own_memory_(model: nn.Module) -> None:
    """Move weights that are mapped from a safetensors file into memory of their own, without holding both at once.

    Mapped weights sit at odd addresses, which changes the speed and the rounding of products, and a layer that is
    replaced frees nothing while any other one of its file lives.
    """
    mapped = _mapped_files()
    for tensor in (*model.parameters(), *model.buffers()):
        old = tensor.data
        tensor.data = old.clone()
        _forget(old, mapped)


def is_large(model: nn.Module) -> bool:
    """Say whether a second copy of the model is to be avoided: what can be seen from shapes is seen from shapes."""
    return sum(t.nbytes for t in weights(model)) > LARGE_BYTES


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the model as it stands, structure and ties included, that holds shapes and no values."""
    memo: dict[int, Any] = {id(b): b.to("meta") for b in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, memo)


def release_(model: nn.Module) -> None:
    """Give back the memory of a model that nothing computes with any more, whoever still holds it."""
    convert_(model, lambda tensor: tensor.new_empty(0))


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of the model's tensors as a checkpoint stores them: shared ones once, coded if it codes."""
    state = clean_state_dict(model)
    if coded_at_rest(model) or own_ties(model):
        state = encode_state(model, state)[0]
    return sum(t.nbytes for t in _distinct(state))


def weights(model: nn.Module) -> list[Tensor]:
    """Return the tensors that a checkpoint stores, shared ones once."""
    return _distinct(clean_state_dict(model))


def _distinct(state: Mapping[str, Tensor]) -> list[Tensor]:
    # By the storage object, not its address: on the meta device every address is 0.
    return list({(storage_of(t), t.storage_offset(), t.shape): t for t in state.values()}.values())


def _mapped_files() -> list[Range]:
    """Return the addresses at which this process has safetensors files mapped; none where the system does not tell."""
    maps = Path("/proc/self/maps")
    if not sys.platform.startswith("linux") or not maps.exists():
        return []
    lines = [line.split() for line in maps.read_text(encoding="utf-8").splitlines()]
    private = [line[0].split("-") for line in lines if line[1].endswith("p") and int(line[4])]  # files have an inode
    return [(int(start, 16), int(end, 16)) for start, end in private]


def _forget(tensor: Tensor, mapped: Sequence[Range]) -> None:
    """Let the system take back the whole pages of a tensor that was read from a mapped file and is not used again."""
    first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    start, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end and tensor.is_contiguous() and any(low <= start and end <= high for low, high in mapped):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)
