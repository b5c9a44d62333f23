"""How long linear layers take on this machine by how wide they are: measured once, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.files import write_text
from ..core.machine import cpu_info

POINTS, ROUNDS, SECONDS = 17, 15, 2e-3  # widths timed; passes over all of them; least time of one measurement


@dataclass(frozen=True)
class Widths:
    """A pair of linear layers around groups: (…, inputs) -> (…, count * rows), then (…, count * columns) -> outputs."""

    inputs: int
    rows: int  # outputs of the first layers, one or several, that belong to a group
    columns: int  # inputs of the second that do
    outputs: int


def seconds_by_count(widths: Widths, counts: Tensor, tokens: int) -> Tensor:
    """Return the seconds both layers take for `tokens` rows in float32, by how many groups they keep; never falling.

    A few counts are timed, the others interpolated. The table is kept by processor, threads, torch and shapes (ZipLM,
    Kurtic 2023, section 3.2), in ``$XDG_CACHE_HOME/hfcompress`` or ``~/.cache/hfcompress``.
    """
    picked = np.unique(np.linspace(0, len(counts) - 1, min(POINTS, len(counts))).round().astype(int))
    points = [int(counts[i]) for i in picked]
    key = {
        "cpu": cpu_info("model name") or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tokens": tokens,
        "points": points,
        **asdict(widths),
    }
    table = _load(_file(key), key) or _store(_file(key), key, measure(widths, points, tokens))
    times = np.maximum.accumulate(table)
    return torch.from_numpy(np.interp(counts.numpy(), points, times))


@torch.no_grad()
def measure(widths: Widths, points: list[int], tokens: int) -> list[float]:
    """Time the layers at every number of groups, in turn, so that what else the machine does touches all alike."""
    passes = [_passes(widths, count, tokens) for count in points]
    times: list[list[float]] = [[] for _ in points]
    for _ in range(ROUNDS):
        for taken, run in zip(times, passes, strict=True):
            taken.append(_timed(*run))
    return [min(taken) for taken in times]  # what else runs only ever adds time


def _passes(widths: Widths, count: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return an input and the weights of both layers."""
    first = torch.randn(count * widths.rows, widths.inputs) / widths.inputs**0.5
    second = torch.randn(widths.outputs, count * widths.columns) / (count * widths.columns) ** 0.5
    return torch.randn(tokens, widths.inputs), first, second


def _timed(x: Tensor, first: Tensor, second: Tensor) -> float:
    """Return the seconds of one pass, as the mean over as many as fill `SECONDS`."""
    done, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < SECONDS or not done:
        F.linear(F.linear(x, first)[:, : second.shape[1]], second)
        done += 1
    return spent / done


def _file(key: dict[str, object]) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return Path(home) / "hfcompress" / f"latency-{digest[:16]}.json"


def _load(file: Path, key: dict[str, object]) -> list[float] | None:
    """Return a table kept for exactly this key; a file that can't be read counts as none."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        seconds = [float(t) for t in kept["seconds"]]
        return seconds if kept["key"] == key and all(t > 0 for t in seconds) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(file: Path, key: dict[str, object], seconds: list[float]) -> list[float]:
    write_text(file, json.dumps({"key": key, "seconds": seconds}, indent=2) + "\n")
    return seconds
