"""The hook by which transformers' own `from_pretrained` and `save_pretrained` understand our checkpoints."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..core.errors import CheckpointError
from ..modules.packed import dequantize_
from ..modules.sparse import check_masks
from .structure import Modules, apply_structure_, read_structure
from .training_state import clean_state_dict

QUANT_METHOD = "hfcompress"
VERSION = 1


@register_quantization_config(QUANT_METHOD)
class HFCompressConfig(QuantizationConfigMixin):
    """What stands in `config.json["quantization_config"]`: module specs by path, and the format's version."""

    def __init__(self, modules: Modules | None = None, version: int = VERSION, **kwargs: Any) -> None:
        kwargs.pop("quant_method", None)
        if version != VERSION or kwargs:
            raise CheckpointError(
                f"this checkpoint has format {version} with extra keys {sorted(kwargs)}; this hfcompress reads format "
                f"{VERSION}. A newer hfcompress wrote it: pip install -U hfcompress"
            )
        if modules is not None and not isinstance(modules, dict):
            raise CheckpointError("quantization_config.modules has to be a mapping of module paths to specs")
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]
        self.version = version
        self.modules = modules or {}


@register_quantizer(QUANT_METHOD)
class HFCompressQuantizer(HfQuantizer):
    """Rebuilds the structure on the empty skeleton, before any weight is read."""

    requires_calibration = False
    quantization_config: HFCompressConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        apply_structure_(model, self.quantization_config.modules)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        check_masks(model)
        mark_trainable_(model)
        return model

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the tensors to save, under their plain names, training wrappers left out."""
        return clean_state_dict(model), {}

    def is_serializable(self) -> bool:
        """Our checkpoints can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Everything that is not packed trains on."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Tell the Trainer that it need not insist on an adapter."""
        return True

    def dequantize(self, model: nn.Module, dtype: Any = None) -> nn.Module:
        """Widen packed layers to plain ones, in place; the pruned shapes stay. Behind `model.dequantize()`."""
        dequantize_(model)
        attach_(model, read_structure(model))
        return model


def attach_(model: nn.Module, modules: Modules) -> None:
    """Make `save_pretrained` write this structure, or none when there is nothing to say."""
    if not modules:
        for owner, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
            if hasattr(owner, name):
                delattr(owner, name)
        return
    config = HFCompressConfig(modules)
    model.config.quantization_config = config  # type: ignore[union-attr]
    model.hf_quantizer = HFCompressQuantizer(config, pre_quantized=True)  # type: ignore[assignment]


def mark_trainable_(model: nn.Module) -> None:
    """Let Trainer and PEFT treat the model as the ordinary float model it is."""
    model.is_quantized = False  # type: ignore[assignment]
