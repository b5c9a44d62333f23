"""Logits on disk, found by the hash of the example they belong to: files that are written once and never changed."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..core.files import remove_unfinished, writing
from .fingerprints import SIZE

DTYPE = torch.float16
NOT_FOUND = -1
_ABANDONED_S = 86_400.0  # after which what is half-written is of a process that was killed


def cache_folder(kind: str) -> Path:
    """Return where results of one kind are kept: under HFCOMPRESS_CACHE, or under ~/.cache/hfcompress."""
    return Path(os.environ.get("HFCOMPRESS_CACHE") or "~/.cache/hfcompress").expanduser() / kind


@dataclass(frozen=True)
class Logits:
    """The logits of one example, (rows, classes): one row for a classifier, else `per_token`, for each that counts.

    With `indices`, `values` (rows, k) are the k largest, and every other class has the logit `rest` (rows,).
    """

    values: Tensor
    indices: Tensor | None
    rest: Tensor | None
    classes: int
    per_token: bool

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(t.nbytes for t in (self.values, self.indices, self.rest) if t is not None)

    def dense(self) -> Tensor:
        """Return all logits, (rows, classes), in float32."""
        if self.indices is None or self.rest is None:
            return self.values.float()
        full = self.rest.float()[:, None].repeat(1, self.classes)
        return full.scatter_(1, self.indices.long(), self.values.float())


def shrunk(logits: Tensor, top_k: int, *, per_token: bool) -> Logits:
    """Return logits (rows, classes) in float16, and `per_token`, of more than `top_k` classes, only the largest.

    What the others have of the probability is spread evenly over them, so that the sum stays one.
    """
    logits = logits.detach().float().cpu()
    classes = logits.shape[-1]
    if not per_token or top_k >= classes:
        return Logits(_half(logits), None, None, classes, per_token)
    values, indices = logits.topk(top_k, dim=-1)
    others = logits.scatter(1, indices, -math.inf).logsumexp(-1) - math.log(classes - top_k)
    return Logits(_half(values), indices.int(), _half(others), classes, per_token)


def _half(values: Tensor) -> Tensor:
    largest = torch.finfo(DTYPE).max
    return values.clamp(-largest, largest).to(DTYPE)


class LogitStore:
    """The files of one folder, mapped into memory; readers and writers of several processes do not disturb each other.

    A file's name is the hash of the examples in it: whoever computes the same ones replaces it by its equal.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        remove_unfinished(folder, unused_s=_ABANDONED_S)
        self._files: list[dict[str, Tensor]] = []
        self._names: set[str] = set()
        self._hashes = np.zeros(0, dtype=f"S{SIZE}")
        self._where = np.zeros((0, 2), dtype=np.int64)  # file and row of each hash

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Return the file and row of each example, (examples, 2); -1 where it is not there. Sees new files."""
        self._open_new_files()
        if not len(self._hashes):
            return np.full((len(hashes), 2), NOT_FOUND, dtype=np.int64)
        place = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        found = self._hashes[place] == hashes
        return np.where(found[:, None], self._where[place], NOT_FOUND)

    def read(self, where: Sequence[int]) -> Logits:
        """Return the logits at a file and row that `find` gave."""
        file, row = self._files[where[0]], int(where[1])
        begin, end = file["offsets"][row].item(), file["offsets"][row + 1].item()
        part = {name: file[name][begin:end] for name in ("values", "indices", "rest") if name in file}
        classes, per_token = file["classes"].tolist()
        return Logits(part["values"], part.get("indices"), part.get("rest"), classes, bool(per_token))

    def write(self, hashes: np.ndarray, logits: Sequence[Logits]) -> None:
        """Write examples into a file of their own, whole or not at all."""
        counts = torch.tensor([0, *(len(found.values) for found in logits)])
        tensors = {
            "hashes": torch.from_numpy(np.frombuffer(hashes.tobytes(), dtype=np.uint8).copy()).view(-1, SIZE),
            "offsets": counts.cumsum(0),
            "classes": torch.tensor([logits[0].classes, int(logits[0].per_token)]),
            "values": torch.cat([found.values for found in logits]),
        }
        if logits[0].indices is not None:
            tensors["indices"] = torch.cat([found.indices for found in logits])  # type: ignore[misc]
            tensors["rest"] = torch.cat([found.rest for found in logits])  # type: ignore[misc]
        name = hashlib.blake2b(hashes.tobytes(), digest_size=SIZE).hexdigest()
        with writing(self.folder / f"{name}.safetensors") as temporary:
            save_file(tensors, str(temporary))

    def _open_new_files(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._names:
                continue
            try:
                file = load_file(path)
            except (SafetensorError, OSError):
                continue  # damaged: its examples count as not there, and are written anew
            self._names.add(path.name)
            hashes = np.frombuffer(file.pop("hashes").numpy().tobytes(), dtype=f"S{SIZE}")
            where = np.stack([np.full(len(hashes), len(self._files)), np.arange(len(hashes))], axis=1)
            self._files.append(file)
            every = np.concatenate([self._hashes, hashes])
            order = np.argsort(every, kind="stable")
            self._hashes, self._where = every[order], np.concatenate([self._where, where])[order]
