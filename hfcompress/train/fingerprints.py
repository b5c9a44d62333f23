"""Hashes that say whether a teacher, its processor and an example are still the same, and tests for randomness."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from ..core.errors import LifecycleError
from ..core.foreign_internals import NAME_OR_PATH

SIZE = 16  # bytes of a hash
LABELS = frozenset({"labels", "label", "label_ids"})  # what a teacher is not shown
_PATHS = (NAME_OR_PATH, "transformers_version")
_TRIED = 4  # examples read twice to see whether they change
_MADE_UP = 600  # tokens of a made-up text: more than collators that cut would leave


def model_digest(model: nn.Module) -> str:
    """Return the hash of a model's class, config and every number it holds."""
    digest = hashlib.blake2b(type(model).__name__.encode(), digest_size=SIZE)
    config = model.config.to_dict() if hasattr(model, "config") else {}  # type: ignore[operator,union-attr]
    kept = {key: value for key, value in config.items() if key not in _PATHS}
    digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def processor_digest(processor: Any) -> str:
    """Return the hash of a tokenizer's vocabulary and padding, or of an image processor's settings; "" for None."""
    if processor is None:
        return ""
    if hasattr(processor, "get_vocab"):
        said: Any = [sorted(processor.get_vocab().items()), processor.special_tokens_map, processor.padding_side]
    else:
        said = processor.to_dict() if hasattr(processor, "to_dict") else repr(processor)
    return hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=SIZE).hexdigest()


def collator_digest(collate: Callable[[list[Any]], Mapping[str, Any]], example: Mapping[str, Any]) -> str:
    """Return the hash of what a collator makes of a made-up example of the same kind as `example`.

    So it tells collators that normalize, cut or pad in another way apart, whatever the data. Raises LifecycleError when
    the collator cannot take it.
    """
    made_up = {name: value if name in LABELS else _made_up(value) for name, value in example.items()}
    try:
        batch = collate([made_up])
    except Exception as error:  # whatever a user's own collator raises
        raise LifecycleError(f"the data collator cannot be tried on a made-up example ({error})") from error
    return hashlib.blake2b(_inputs(batch), digest_size=SIZE).hexdigest()


def example_digests(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of each example's inputs, (examples,) of 16 bytes, and how many bytes they have."""
    found, sizes = [], []
    for example in _stored(dataset):
        data = _inputs(example)
        found.append(hashlib.blake2b(data, digest_size=SIZE).digest())
        sizes.append(len(data))
    return np.array(found, dtype=f"S{SIZE}"), np.array(sizes)


def view_digests(hashes: np.ndarray, views: int) -> np.ndarray:
    """Return the hash of each view of each example, (views * examples,): all first views, then all second ones."""
    found = [
        hashlib.blake2b(bytes(h) + str(v).encode(), digest_size=SIZE).digest() for v in range(views) for h in hashes
    ]
    return np.array(found, dtype=f"S{SIZE}")


def why_random(dataset: Any, collate: Callable[[list[Any]], Mapping[str, Any]]) -> str | None:
    """Return what changes the inputs from one reading to the next, in words, or None when nothing does."""
    rows = range(min(_TRIED, len(dataset)))
    with _other_random_numbers():
        first, second = ([_inputs(dataset[i]) for i in rows] for _ in range(2))
        if first != second:
            return "the data set gives other inputs each time it is read (augmentation)"
        first, second = ([_inputs(collate([dataset[i]])) for i in rows] for _ in range(2))
    return None if first == second else "the data collator gives other inputs each time (augmentation or masking)"


class _other_random_numbers:  # noqa: N801 - a context manager, used as one
    """Leaves the generators of Python, numpy and torch as they were."""

    def __enter__(self) -> None:
        self._states = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def __exit__(self, *_: object) -> None:
        python, numpy, cpu = self._states
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


def _stored(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every example as it is kept: images that are decoded when read are not decoded here."""
    if not isinstance(dataset, Dataset):
        yield from (dataset[i] for i in range(len(dataset)))
    elif dataset.format["type"] == "custom":
        for table in dataset.with_format("arrow").iter(256):
            yield from table.to_pylist()
    else:
        for rows in dataset.with_format("numpy", columns=dataset.format["columns"]).iter(256):
            names = list(rows)
            yield from (dict(zip(names, row, strict=True)) for row in zip(*rows.values(), strict=True))


def _inputs(example: Mapping[str, Any]) -> bytes:
    """Return everything a teacher would see of an example or batch as bytes."""
    parts = [name.encode() + b"=" + _bytes(example[name]) for name in sorted(example) if name not in LABELS]
    return b";".join(parts)


def _bytes(value: Any) -> bytes:
    if isinstance(value, Mapping):
        if value.get("bytes") is None and value.get("path"):  # an image file
            return Path(value["path"]).read_bytes()
        return _inputs(value)
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) or value is None:
        return repr(value).encode()
    array = np.asarray(value)
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return f"{array.dtype}{array.shape}".encode() + array.tobytes()


def _made_up(value: Any) -> Any:
    """Return a value of the same type: a fixed ramp over an image, tokens 0 and 1 of a long text."""
    if not isinstance(value, list | np.ndarray | torch.Tensor):
        return value
    array = np.asarray(value)
    if array.ndim == 1 and array.dtype.kind in "iu":
        array = np.arange(_MADE_UP) % 2
    else:
        array = (np.arange(array.size) % 251).reshape(array.shape).astype(array.dtype)
    if isinstance(value, torch.Tensor):
        return torch.from_numpy(array).to(value.dtype)
    return array.tolist() if isinstance(value, list) else array
