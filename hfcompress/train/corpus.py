"""A data set, or batches of model inputs, as methods read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..core.method import Corpus


def corpus_of(encoded: Callable[[], Any], texts: Callable[[], Iterable[str]] = tuple) -> Corpus:
    """Return a data set as methods read it; `encoded` gives its examples, each with `input_ids` or `pixel_values`."""

    def examples() -> Iterator[Mapping[str, Any]]:
        found = encoded()
        if "input_ids" in (getattr(found, "column_names", None) or ()):  # a `datasets.Dataset` need not read the others
            found = found.select_columns(["input_ids"])
        return (found[i] for i in range(len(found))) if hasattr(found, "__len__") else iter(found)

    def token_ids() -> Iterable[Sequence[int]]:
        return (example["input_ids"] for example in examples() if "input_ids" in example)

    def image_size() -> tuple[int, int] | None:
        pixels = next(examples(), {}).get("pixel_values")
        return None if pixels is None else (np.shape(pixels)[-2], np.shape(pixels)[-1])

    return Corpus(texts, token_ids, image_size)


def corpus_of_batches(batches: Iterable[Mapping[str, torch.Tensor]], texts: Sequence[str] = ()) -> Corpus:
    """Return batches of model inputs as methods read them, without the padding that attention masks mark."""
    batches = list(batches)

    def examples() -> Iterator[dict[str, Any]]:
        for batch in batches:
            ids, mask = batch.get("input_ids"), batch.get("attention_mask")
            if ids is None:
                yield from ({"pixel_values": image} for image in batch.get("pixel_values", ()))
                continue
            used = torch.ones_like(ids) if mask is None else mask
            yield from ({"input_ids": row[keep.bool()].tolist()} for row, keep in zip(ids, used, strict=True))

    return corpus_of(examples, lambda: texts)
