"""One file per method; importing this package fills the registry."""

from . import distill, gptq, magnitude, movement, n_m, quantize_weights, sparsegpt, wanda

__all__ = ["distill", "gptq", "magnitude", "movement", "n_m", "quantize_weights", "sparsegpt", "wanda"]
