"""Settings shared by the methods that remove structure at once, without training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .config import StrictModel


class RemovalConfig(StrictModel):
    """Settings of one-shot structured pruning."""

    remove: float = Field(
        gt=0, lt=1, description="Share to remove of what `budget` counts, over all layers together; they compete."
    )
    budget: Literal["count", "parameters", "flops", "latency"] = Field(
        "count",
        description="What `remove` is a share of: the number, their parameters, their operations, or the time their "
        "linear layers take on this machine, measured once (ZipLM, Kurtic 2023).",
    )
    tune: Literal["none", "mask", "weights"] = Field(
        "weights",
        description="How what is left makes up for it, by least squares on calibration data, block by block: not; by a "
        "factor each (Kwon 2022); by refitting weights and bias of the projection that reads them.",
    )
    ridge: float = Field(
        0.01, gt=0, description="Pull towards the original values, relative to the mean square of the inputs."
    )
    examples: int = Field(512, ge=1, description="Calibration examples to read, where the caller provides that many.")
    latency_tokens: int = Field(128, ge=1, description="Tokens (batch x length) that budget: latency times at.")
