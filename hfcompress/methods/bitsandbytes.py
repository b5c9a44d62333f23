"""LLM.int8, NF4 and FP4 weights, held by the bitsandbytes library."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.families import base_prefix
from ..core.foreign_internals import float32_modules
from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.registry import register
from ..core.targets import select
from ..modules.bnb import BnbFormat, bnb_format, can_quantize, library, stored_bytes
from ..modules.bnb_quantized import BnbRounded, quantize_bnb_
from ..modules.packable import obstacle, refuse_obstacles, without_obstacles
from ..modules.packed import PackedLinear, weight_matrix
from ..modules.parametrizations import attach, detach, find
from ..modules.ties import refuse_shared


class BitsandbytesConfig(StrictModel):
    """Settings of quantization by bitsandbytes."""

    mode: Literal["int8", "nf4", "fp4"] = Field(
        "nf4",
        description="nf4: 4 bits, codes placed for normally distributed weights (QLoRA); fp4: 4-bit floats; int8: "
        "LLM.int8, which also rounds activations to 8 bits.",
    )
    double_quant: bool = Field(False, description="nf4, fp4: hold the blocks' scales in 8 bits too (QLoRA).")
    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = Field(
        64, description="nf4, fp4: weights that share one scale."
    )
    threshold: float = Field(
        6.0, ge=0, description="int8: inputs with a value above this are multiplied in float; 0: none are."
    )
    targets: list[str] | None = Field(
        None,
        description="Module paths, re:<regex>, or class names; default: every linear layer of the base model but its "
        "pooler and what the model class keeps in float32, so that the task head stays in float.",
    )
    ignore: list[str] = Field(default_factory=list, description="Modules to leave alone, in the same notation.")

    @model_validator(mode="after")
    def _belongs_to_mode(self) -> BitsandbytesConfig:
        for name in ("double_quant", "block_size") if self.mode == "int8" else ("threshold",):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no meaning in mode {self.mode}; leave it out")
        return self


@register
class Bitsandbytes(Method[BitsandbytesConfig]):
    """Puts the library's layers in place of linear ones; it saves memory and bytes, not time.

    The rounding is switched on at the end of the stage, so what is evaluated there is what will be stored. LLM.int8
    rounds activations as well, which only its own layer does: there the two differ, by 1% of the hidden states or so.
    Pruning belongs in a stage before this one: columns that go would shift the blocks that share a scale. Single zeros
    stay zero, and take the bits of any other weight.
    """

    info = MethodInfo(
        name="bitsandbytes",
        title="Quantization by bitsandbytes",
        summary="Linear layers in LLM.int8, NF4 or FP4 with double quantization; adapters train on top (QLoRA).",
        category=Category.QUANTIZATION,
        phase=Phase.QUANT,
        papers=("https://arxiv.org/abs/2208.07339", "https://arxiv.org/abs/2305.14314"),
    )
    Config = BitsandbytesConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Wrap every target, switched off: training before this point is not slowed or changed.

        Raises TargetError for layers in few bits already, and for what the library or the model class can't have so.
        """
        library()
        self._form = BnbFormat(
            self.config.mode, self.config.double_quant, self.config.threshold, self.config.block_size
        )
        self._refuse_another_format(model)
        self._paths = self._select(model)
        for path in self._paths:
            refuse_shared(model, path)
            if _stays_float(model, path):
                raise TargetError(
                    f"{path}: a {type(model).__name__} computes with this layer in float32 only; ignore it"
                )
            attach(model, path, BnbRounded(self._form), as_matrix=True)
        return self._paths

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Switch the rounding on at the end of the stage."""
        for path in self._paths:
            find(model, path, BnbRounded).on.fill_(fraction >= 1.0)

    def finalize(self, model: nn.Module) -> None:
        """Hand the targets to the library."""
        self._weights = 0
        for path in self._paths:
            detach(model, path, BnbRounded)
            self._weights += weight_matrix(model.get_submodule(path)).numel()
            quantize_bnb_(model, path, self._form)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the layers quantized, the weights in them, and the bytes these take in a file, scales included."""
        return {
            "layers": len(self._paths),
            "weights": self._weights,
            "bits": 8 if self.config.mode == "int8" else 4,
            "bytes": sum(stored_bytes(model.get_submodule(path)) for path in self._paths),
        }

    def _select(self, model: nn.Module) -> list[str]:
        layers = [(p, m) for p, m in model.named_modules() if can_quantize(m) or isinstance(m, PackedLinear)]
        if self.config.targets is None:
            prefix = base_prefix(model)
            layers = [(p, m) for p, m in layers if p.startswith(prefix) and "pooler" not in p.split(".")]
            layers = [(p, m) for p, m in layers if not _stays_float(model, p)]
            layers = without_obstacles(model, layers, obstacle)
        chosen = select(layers, self.config.targets, self.config.ignore, "bitsandbytes.targets")
        refuse_obstacles(model, chosen, obstacle)
        packed = [p for p, m in chosen if isinstance(m, PackedLinear) and m.grid is not None]
        if packed:
            more = f" and {len(packed) - 1} more layers" if len(packed) > 1 else ""
            raise TargetError(
                f"bitsandbytes: the weight of {packed[0]}{more} is in few bits already: add what is to stay so to "
                "`ignore` (PackedLinear names all), or leave out what quantized it"
            )
        return [p for p, _ in chosen]

    def _refuse_another_format(self, model: nn.Module) -> None:
        found = bnb_format(model)
        if found is not None and replace(found, block_size=self._form.block_size) != self._form:
            raise TargetError(
                f"this model already holds bitsandbytes layers in {found.mode}, and a checkpoint holds one format: "
                "use the same settings again, or dequantize the model first"
            )


def _stays_float(model: nn.Module, path: str) -> bool:
    """Say whether the model class keeps the layer in float32: T5 casts what goes into `wo` to its weight's dtype."""
    return any(f".{name}." in f".{path}." for name in float32_modules(model))
