"""What a checkpoint says of itself so that damage shows: a digest of its structure, and of its weights, part by part.

Transformers writes `config.json` before the weights, so the digest of a file is not known when it would have to be
written. The weights' digests are therefore of tensors as they are in memory: by name, dtype, shape and bytes, whichever
files they go to. A part is a block, or what stands beside the blocks, so that a damaged one can be named.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..modules.bnb import bnb_layers, flat_codes
from ..modules.plain_names import clean_state_dict
from .paths import relative

STRUCTURE = "structure_sha256"  # the key that is of all others
ANY = "*"  # the dtype of floats that are not named
# what shapes a model and does not show in the shape of any tensor
_COUNTS = ("num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers", "num_decoder_layers")


def structure_digest(stated: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what `quantization_config` states, however it is laid out in the file."""
    rest = {key: value for key, value in stated.items() if key != STRUCTURE}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def weight_digests(model: nn.Module) -> dict[str, str] | None:
    """Return the SHA-256 of each part's tensors, by the part's path; None where some are elsewhere, as on disk."""
    state = flat_codes(model, clean_state_dict(model))
    if any(tensor.is_meta or hasattr(tensor, "to_local") for tensor in state.values()):
        return None
    found: dict[str, Any] = {}
    for name, tensor in sorted((relative(model, name), tensor) for name, tensor in state.items()):
        digest = found.setdefault(_part(name), hashlib.sha256())
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {part: digest.hexdigest() for part, digest in sorted(found.items())}


def float_dtypes(model: nn.Module) -> dict[str, str]:
    """Return the dtype that most floats have, under "*", and by path those of the tensors that have another.

    Tensors of another library's layers are left out: that library says what they have to be.
    """
    inner = tuple(f"{path}." for path, _ in bnb_layers(model))
    floats = {
        n: t.dtype for n, t in clean_state_dict(model).items() if t.is_floating_point() and not n.startswith(inner)
    }
    counts = Counter(map(dtype_name, floats.values()))
    if not counts:
        return {}
    most = max(sorted(counts), key=counts.__getitem__)
    others = {relative(model, n): dtype_name(t) for n, t in sorted(floats.items()) if dtype_name(t) != most}
    return {ANY: most, **others}


def counts_of(config: Any) -> dict[str, int]:
    """Return the numbers of the config that shape the model and could be others without a tensor that does not fit."""
    found = {name: getattr(config, name, None) for name in _COUNTS}
    return {name: value for name, value in found.items() if type(value) is int}


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype as a checkpoint writes it, such as 'bfloat16'."""
    return str(dtype).removeprefix("torch.")


def _part(name: str) -> str:
    """Return the path down to the first number, which is a block's, or the first name where there is none."""
    names = name.split(".")
    end = next((i for i, each in enumerate(names) if each.isdigit()), 0)
    return ".".join(names[: end + 1])
