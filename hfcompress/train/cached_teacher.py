"""A teacher that is looked up where it was run before: its logits are computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.modeling_outputs import MaskedLMOutput

from ..core.errors import LifecycleError
from ..core.progress import track
from .augmentation import VIEW
from .fingerprints import example_digests, model_digest, view_digests
from .logit_store import NOT_FOUND, Logits, LogitStore, cache_folder, shrunk
from .teacher import Teacher

Batch = Mapping[str, Any]
FILE_BYTES = 64 << 20  # of logits are computed before they are written: what an interruption loses at most
VERSION = 1  # of what lies on disk
NUMBER = "example_number"  # name of the column with an example's place in its data set


@dataclass(frozen=True)
class Computing:
    """How logits that are not there yet are computed, by one of several processes."""

    batch: Callable[[Sequence[int]], Batch]  # makes a batch of the examples with these numbers, on the device
    size: int = 8  # examples at once
    rank: int = 0
    ranks: int = 1
    wait: Callable[[], Any] = lambda: None  # for the other processes
    quiet: bool = True


class CachedTeacher:
    """Gives the logits that the teacher gave before, by the number an example has in its data set.

    They are kept in float16; of a model with logits for every token, only the `top_k` largest of each. `settings` are
    what they depend on beside the teacher and the example: when one changes, they are computed anew. With `views`, each
    example has so many forms; form v of example i has the number v * len(dataset) + i.
    """

    def __init__(
        self, teacher: Teacher, dataset: Any, top_k: int, settings: Mapping[str, Any], views: int | None = None
    ) -> None:
        self.teacher, self.top_k = teacher, top_k
        known = {"version": VERSION, "teacher": model_digest(teacher.model), "top_k": top_k, **settings}
        key = hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=16).hexdigest()
        self.store = LogitStore(cache_folder("teacher") / key)
        self._hashes, self._sizes = example_digests(dataset)
        if views is not None:
            self._hashes, self._sizes = view_digests(self._hashes, views), np.tile(self._sizes, views)
        self._where = self.store.find(self._hashes)

    def fill(self, computing: Computing) -> int:
        """Let the teacher compute what is missing, this process its share of it; return how many examples that were."""
        computing.wait()  # every process has looked before one writes: their shares are of the same whole
        mine = self._missing()[computing.rank :: computing.ranks]
        self._compute(mine, computing)
        computing.wait()
        self._where = self.store.find(self._hashes)
        left = self._missing()  # of processes whose disk is not ours
        self._compute(left, computing)
        self._where = self.store.find(self._hashes)
        return len(mine) + len(left)

    def __call__(self, batch: Batch, numbers: Tensor) -> Any:
        """Return the logits of the examples with these numbers, laid out as the batch is padded."""
        found = [self.store.read(self._where[number]) for number in numbers.tolist()]
        logits = _padded(found, _counted(batch)) if found[0].per_token else torch.cat([one.dense() for one in found])
        return MaskedLMOutput(logits=logits.to(numbers.device))

    def _missing(self) -> np.ndarray:
        """Return the numbers of examples that are not there, equal ones once, the shortest first (less padding)."""
        numbers = np.flatnonzero(self._where[:, 0] == NOT_FOUND)
        numbers = numbers[np.unique(self._hashes[numbers], return_index=True)[1]]
        return numbers[np.argsort(self._sizes[numbers], kind="stable")]

    def _compute(self, numbers: np.ndarray, computing: Computing) -> None:
        chunks = np.split(numbers, range(computing.size, len(numbers), computing.size)) if len(numbers) else []
        shown = tqdm(chunks, desc="teacher", disable=computing.quiet or not chunks)
        pending: list[tuple[np.ndarray, list[Logits]]] = []
        for chunk, _ in zip(shown, track(chunks, lambda _: "running the teacher once"), strict=True):
            pending.append((self._hashes[chunk], list(self._run(computing.batch(chunk.tolist())))))
            if sum(one.nbytes for _, logits in pending for one in logits) > FILE_BYTES:
                self._write(pending)
        self._write(pending)

    def _run(self, batch: Batch) -> Iterator[Logits]:
        logits = self.teacher(batch).get("logits")
        if logits is None:
            raise LifecycleError("teacher_cache: the teacher gives logits of several kinds, or none; leave it out")
        if logits.dim() == 2:
            yield from (shrunk(row[None], self.top_k, per_token=False) for row in logits)
            return
        counted = _counted(batch)
        if logits.dim() != 3 or counted is None or counted.shape != logits.shape[:2]:
            raise LifecycleError(f"teacher_cache: logits of shape {tuple(logits.shape)} cannot be kept; leave it out")
        yield from (shrunk(row[kept], self.top_k, per_token=True) for row, kept in zip(logits, counted, strict=True))

    def _write(self, pending: list[tuple[np.ndarray, list[Logits]]]) -> None:
        if pending:
            hashes = np.concatenate([found for found, _ in pending])
            self.store.write(hashes, [one for _, logits in pending for one in logits])
            pending.clear()


class Numbered(torch.utils.data.Dataset[dict[str, Any]]):
    """A data set whose examples know their number in it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], NUMBER: index}


class KeepNumbers:
    """A data collator that adds the numbers of the examples to the batch of the one it wraps, which sees none.

    Where that one has `views`, they are drawn here, of `count` examples, and the number says which view it is.
    """

    def __init__(self, collate: Callable[[list[Any]], Mapping[str, Any]], count: int) -> None:
        self.collate, self.count = collate, count

    def __call__(self, examples: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the batch with one more tensor, (examples,)."""
        numbers = torch.tensor([int(example[NUMBER]) for example in examples])
        plain = [{k: v for k, v in example.items() if k != NUMBER} for example in examples]
        if getattr(self.collate, "views", None):
            views = self.collate.draw(plain)  # type: ignore[attr-defined]
            numbers += self.count * torch.tensor(views)
            plain = [{**example, VIEW: view} for example, view in zip(plain, views, strict=True)]
        return {**self.collate(plain), NUMBER: numbers}


def _counted(batch: Batch) -> Tensor | None:
    """Return which tokens of a batch are no padding, (batch, length); None where there are no tokens."""
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if ids is None:
        return None
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()


def _padded(found: Sequence[Logits], counted: Tensor | None) -> Tensor:
    """Return logits (batch, length, classes), zero where a token is padding."""
    if counted is None:
        raise LifecycleError("teacher_cache: the batch has no tokens to lay the teacher's logits over")
    logits = torch.zeros(*counted.shape, found[0].classes)
    for row, kept, one in zip(logits, counted.cpu(), found, strict=True):
        row[kept] = one.dense()
    return logits
