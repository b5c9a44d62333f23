"""One file per method; importing this package fills the registry."""

from . import (
    bitsandbytes,
    distill,
    ffn,
    gptq,
    heads,
    layers,
    magnitude,
    mixed_bits,
    movement,
    n_m,
    positions,
    qat,
    quantize_weights,
    sparsegpt,
    vocabulary,
    wanda,
)

__all__ = [
    "bitsandbytes",
    "distill",
    "ffn",
    "gptq",
    "heads",
    "layers",
    "magnitude",
    "mixed_bits",
    "movement",
    "n_m",
    "positions",
    "qat",
    "quantize_weights",
    "sparsegpt",
    "vocabulary",
    "wanda",
]
