"""Compressed tiny models of every form in which a checkpoint stores layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from tiny import calibration, make
from torch import nn

from hfcompress import compress
from hfcompress.checkpoint import save_checkpoint
from hfcompress.core.families import blocks_of, family_of
from hfcompress.methods.bitsandbytes import BitsandbytesConfig
from hfcompress.methods.cluster_weights import ClusterWeightsConfig
from hfcompress.methods.entropy_coding import EntropyCodingConfig
from hfcompress.methods.magnitude import MagnitudeConfig
from hfcompress.methods.product_quantization import ProductQuantizationConfig
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig
from hfcompress.methods.share_layers import ShareLayersConfig
from hfcompress.methods.smooth_quant import SmoothQuantConfig
from hfcompress.methods.svd import SVDConfig
from hfcompress.modules.hashed import HashedWeight, put_hashed_
from hfcompress.modules.shrink import keep_heads_, keep_units_


@dataclass(frozen=True)
class Subject:
    """A tiny model and what is done to it."""

    model: str
    change: Callable[[nn.Module], object]
    dtype: torch.dtype = torch.float32

    def save(self, folder: Path) -> Path:
        """Compress and save the model."""
        model = make(self.model).to(self.dtype)
        with patch("hfcompress.modules.at_rest.SAVING", 8):  # so that tensors of tiny models are worth coding
            self.change(model)
            return save_checkpoint(model, folder)


def _by(*configs, data: str | None = None) -> Callable[[nn.Module], object]:
    def change(model: nn.Module) -> None:
        for config in configs:
            compress(model, config, calibration=calibration(data) if data else None)

    return change


def _pruned(model: nn.Module) -> None:
    for i, block in enumerate(blocks_of(model, family_of(model))):
        heads, units = model.get_submodule(block.query), model.get_submodule(block.down)
        keep_heads_(model, block, torch.arange(heads.out_features // block.head_size) >= i % 3)
        keep_units_(model, block, torch.arange(units.in_features) >= 8 * (i + 1))


def _hashed(model: nn.Module) -> None:
    path = "bert.embeddings.word_embeddings"
    wrapper = HashedWeight(model.get_submodule(path).weight, 10, "multiply")
    wrapper.start(model.get_submodule(path).weight)
    put_hashed_(model, path, wrapper)


SUBJECTS = {
    "8 bits": Subject("bert", _by(QuantizeWeightsConfig())),
    "4 bits, zero points": Subject("distilbert", _by(QuantizeWeightsConfig(bits=4, group_size=8, symmetric=False))),
    "ternary": Subject("vit", _by(QuantizeWeightsConfig(bits="ternary", embedding_bits=8))),
    "inputs": Subject("vit", _by(SmoothQuantConfig(), data="vit")),
    "pruned weights": Subject("bert", _by(MagnitudeConfig(sparsity=0.8), QuantizeWeightsConfig())),
    "clustered": Subject("bert", _by(ClusterWeightsConfig(clusters=8))),
    "coded": Subject("vit", _by(ClusterWeightsConfig(rows=None), EntropyCodingConfig())),
    "factors": Subject("bert", _by(SVDConfig(rank=4))),
    "factors, 16 bits": Subject("vit", _by(SVDConfig(rank=4)), torch.float16),
    "shared": Subject("bert", _by(ShareLayersConfig())),
    "shared and packed": Subject("bert", _by(ShareLayersConfig(), QuantizeWeightsConfig(bits=4))),
    "pruned heads": Subject("bert", _pruned),
    "pruned image model": Subject("vit", _pruned),
    "tied": Subject("gpt2-lm", _by(QuantizeWeightsConfig())),
    "vectors": Subject("bert", _by(ProductQuantizationConfig(dim=4, codewords=16))),
    "hashed": Subject("bert", _hashed),
    "nf4": Subject("bert", _by(BitsandbytesConfig(mode="nf4"))),
    "int8": Subject("vit", _by(BitsandbytesConfig(mode="int8"))),
}
