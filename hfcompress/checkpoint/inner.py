"""The inner quantization of a checkpoint: layers that another library holds, in that library's own config keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from torch import nn
from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig
from transformers.quantizers.base import HfQuantizer

from ..core.config import StrictModel
from ..core.errors import CheckpointError
from ..core.explain import explain
from ..modules.bnb import BnbFormat, bnb_format, library


class Inner(StrictModel):
    """`quantization_config.inner`: keys and values are those of transformers' BitsAndBytesConfig."""

    quant_method: Literal["bitsandbytes"]
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    llm_int8_threshold: float = Field(6.0, ge=0)
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "fp4"
    bnb_4bit_use_double_quant: bool = False

    @model_validator(mode="after")
    def _one_width(self) -> Inner:
        if self.load_in_8bit == self.load_in_4bit:
            raise ValueError("exactly one of load_in_8bit and load_in_4bit has to be true")
        return self

    @property
    def form(self) -> BnbFormat:
        """The format of the layers."""
        if self.load_in_8bit:
            return BnbFormat("int8", threshold=self.llm_int8_threshold)
        return BnbFormat(self.bnb_4bit_quant_type, self.bnb_4bit_use_double_quant)


def parse_inner(inner: Any) -> Inner:
    """Return the checked inner quantization of a checkpoint; CheckpointError for anything else."""
    try:
        return Inner.model_validate(inner)
    except ValidationError as error:
        raise CheckpointError(explain(error, Inner, "quantization_config.inner")) from error


def read_inner(model: nn.Module) -> dict[str, Any] | None:
    """Return how another library holds layers of this model, read off them; None when it holds none."""
    form = bnb_format(model)
    if form is None:
        return None
    if form.mode == "int8":
        return {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": form.threshold}
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": form.mode,
        "bnb_4bit_use_double_quant": form.double_quant,
    }


def inner_quantizer(inner: Mapping[str, Any], *, pre_quantized: bool) -> HfQuantizer:
    """Return transformers' quantizer for these layers, which knows how their tensors are named in a file.

    Raises CheckpointError when the library cannot be imported.
    """
    library(CheckpointError)
    return AutoHfQuantizer.from_config(AutoQuantizationConfig.from_dict(dict(inner)), pre_quantized=pre_quantized)
