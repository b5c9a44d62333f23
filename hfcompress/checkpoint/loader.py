"""The hook by which transformers' own `from_pretrained` and `save_pretrained` understand our checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightRenaming
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin, QuantizationMethod

from ..core.errors import CheckpointError, LifecycleError
from ..core.foreign_internals import (
    has_users_adapters,
    keep_from_ddp_,
    kept_in_float32,
    load_conversions,
    set_load_conversions_,
)
from ..modules.at_rest import code_at_rest_, coded_at_rest
from ..modules.bnb import check_bnb_, expect_bnb_, flat_codes, widen_bnb_
from ..modules.packed import check_masks, dequantize_
from ..modules.plain_names import clean_state_dict
from ..modules.ties import own_ties
from .announcing import announce_, silence_
from .as_stored import keeps_dtypes
from .coded import Place, decode_streams_, encode_state, expect_streams_
from .contents import Contents, read_contents, require_all, require_dtype, require_ties_alike
from .digests import STRUCTURE, counts_of, float_dtypes, structure_digest, weight_digests
from .inner import inner_quantizer, parse_inner, read_inner
from .paths import relative
from .stated import require_types, short
from .structure import Modules, apply_structure_, apply_ties_, read_structure

QUANT_METHOD = "hfcompress"
VERSION = 1


class HFCompressConfig(QuantizationConfigMixin):
    """What stands in `config.json["quantization_config"]`: module specs by path, and the format's version.

    `inner` is there when another library holds some of the layers: its own config. `coded` is there when the file holds
    tensors as coded streams, see coded.py; `ties` when parameters are one that the config alone would keep apart. The
    rest makes damage show, see digests.py; earlier releases wrote none of it.
    """

    inner: dict[str, Any] | None = None
    coded: dict[str, Any] | None = None
    ties: dict[str, str] | None = None
    counts: dict[str, int] | None = None
    dtypes: dict[str, str] | None = None
    weights_sha256: dict[str, str] | None = None
    structure_sha256: str | None = None

    def __init__(
        self,
        modules: Modules | None = None,
        version: int = VERSION,
        inner: dict[str, Any] | None = None,
        coded: dict[str, Any] | None = None,
        ties: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("quant_method", None)
        evidence = {key: kwargs.pop(key, None) for key in ("counts", "dtypes", "weights_sha256", STRUCTURE)}
        if type(version) is not int or version != VERSION or kwargs:
            raise CheckpointError(
                f"this checkpoint has format {short(version)} with extra keys {short(sorted(kwargs))}; this hfcompress "
                f"reads format {VERSION}. A newer hfcompress wrote it: pip install -U hfcompress"
            )
        if evidence[STRUCTURE] is None and any(value is not None for value in evidence.values()):
            raise CheckpointError(
                f"quantization_config has no {STRUCTURE}, which is written with what else it holds: it was changed "
                "after the checkpoint was saved. Download or copy config.json again"
            )
        require_types({"modules": modules, "coded": coded, "ties": ties, **evidence})
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]
        self.version = version
        self.modules = modules or {}
        if inner is not None:  # where there is none, the file says nothing of it
            parse_inner(inner)
            self.inner = dict(inner)
        if coded is not None:
            self.coded = dict(coded)
        if ties is not None:
            self.ties = dict(ties)
        for key, value in evidence.items():
            if value is not None:
                setattr(self, key, value)

    def get(self, key: str, default: Any = None) -> Any:
        """Return what is stated under `key`, as a mapping would: transformers asks a config handed over so."""
        return getattr(self, key, default)

    def to_dict(self) -> dict[str, Any]:
        """Return what stands in the file, with the digest of all of it."""
        stated = {key: value for key, value in super().to_dict().items() if value is not None and key != STRUCTURE}
        return {**stated, STRUCTURE: structure_digest(stated)}

    def require_unchanged(self, config: Any) -> None:
        """Raise CheckpointError when what was read is not what was written, here or in the model's own `config`."""
        if self.structure_sha256 not in (None, self.to_dict()[STRUCTURE]):
            raise CheckpointError(
                "quantization_config was changed after the checkpoint was saved: what it says is not what its "
                f"{STRUCTURE} is of. Download or copy config.json again"
            )
        found = counts_of(config)
        for key, value in (self.counts or {}).items():
            if found.get(key) != value:
                raise CheckpointError(
                    f"{key} is {found.get(key)}, but the checkpoint was saved with {value}: download or copy "
                    "config.json again, or leave that setting out"
                )

    def describe(self, model: nn.Module) -> None:
        """Note, of the model as it is about to be saved, what makes damage show."""
        self.counts, self.dtypes = counts_of(model.config) or None, float_dtypes(model) or None
        self.weights_sha256 = weight_digests(model)


class HFCompressQuantizer(HfQuantizer):
    """Rebuilds the structure on the empty skeleton, before any weight is read."""

    requires_calibration = False
    quantization_config: HFCompressConfig

    def __init__(self, quantization_config: HFCompressConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        inner = quantization_config.inner
        self.inner = None if inner is None else inner_quantizer(inner, pre_quantized=self.pre_quantized)
        self._dtypes: dict[str, torch.dtype] = {}
        self._streams: dict[str, Place] = {}
        self._contents = Contents()

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Check what the inner quantization needs of this machine."""
        if self.inner is not None:
            self.inner.validate_environment(*args, **kwargs)

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        paths = apply_structure_(model, self.quantization_config.modules)
        if paths and self.quantization_config.inner is None:
            raise CheckpointError(f"{paths[0]} is left to another library, but quantization_config.inner names none")
        if paths:
            expect_bnb_(model, paths, parse_inner(self.quantization_config.inner).form)
            self._dtypes = {name: p.dtype for name, p in model.named_parameters() if p.is_floating_point()}
        apply_ties_(model, self.quantization_config.ties or {})
        require_ties_alike(model)
        self._streams = expect_streams_(model, self.quantization_config.coded or {})
        self.quantization_config.require_unchanged(model.config)
        files, dtypes = kwargs.get("checkpoint_files"), self.quantization_config.dtypes
        require_dtype(files, dtypes)
        self._contents = read_contents(model, files, dtypes)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        require_all(model, self._contents)
        decode_streams_(model, self._streams)
        check_masks(model)
        for parameter in model.parameters():
            if parameter.numel() == 0:  # it stands beside a packed weight; loading lets all floats train
                parameter.requires_grad_(False)
        if self.quantization_config.inner is not None:
            check_bnb_(model, parse_inner(self.quantization_config.inner).form)
            if not keeps_dtypes():
                _cast_(model, self._dtypes)
        _lend_(self, model)
        mark_trainable_(model)
        return model

    def update_attn_implementation(self, config: Any) -> Any:
        """Take the advice for those who lack this package off the config, before the model is built."""
        silence_(config)
        return config

    def update_tp_plan(self, config: Any) -> Any:
        """Do the same in releases of transformers that ask for this alone."""
        silence_(config)
        return config

    # ------------------------------------------------------------------ how inner layers' tensors are read

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Say whether the inner quantization holds this parameter."""
        return self.inner is not None and self.inner.param_needs_quantization(model, param_name, **kwargs)

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Return the dtype that a tensor is cast to as it is read, None for its own."""
        return None if keeps_dtypes() else super().get_new_dtype(converter, param, dtype)

    @property
    def serialized_names(self) -> dict[str, list[str]]:  # type: ignore[override]
        """The names in a file of the tensors that make up one parameter."""
        return {} if self.inner is None else self.inner.serialized_names

    def get_load_operations(self) -> dict[str, Any]:
        """What makes a parameter of those tensors."""
        return {} if self.inner is None else self.inner.get_load_operations()

    # ------------------------------------------------------------------ saving, training, dequantizing

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the tensors to save, under their plain names, training wrappers left out.

        The config is told here, before transformers writes it, what they are of: layers may have gone or changed since
        it was last told, and another release of the coder may make streams of other lengths. The structure to which
        training wrappers belong was told before they were put on. Adapters go to a file of their own, without a config.
        """
        state = clean_state_dict(model)
        if has_users_adapters(model):
            return state, {}
        if state.keys() == model.state_dict().keys():
            attach_(model, read_structure(model))
        config: Any = model.config
        state, entries = encode_state(model, flat_codes(model, state))
        if hasattr(config, "quantization_config"):
            config.quantization_config.coded = entries or None
            config.quantization_config.describe(model)
        return state, {}

    def is_serializable(self) -> bool:
        """Our checkpoints can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Everything that is not packed trains on; under an inner quantization, adapters do."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Tell the Trainer whether it need not insist on an adapter."""
        return self.inner is None

    def dequantize(self, model: nn.Module, dtype: Any = None) -> nn.Module:
        """Widen quantized layers to plain ones, in place; the pruned shapes stay. Behind `model.dequantize()`."""
        dequantize_(widen_bnb_(model))
        attach_(model, read_structure(model))
        return model


# in place of the stand-ins that importing the package has put there
AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = HFCompressConfig
AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = HFCompressQuantizer


def attach_(model: nn.Module, modules: Modules) -> None:
    """Make `save_pretrained` write this structure, or none when there is nothing to say."""
    ties = {relative(model, target): relative(model, source) for target, source in own_ties(model).items()}
    if not modules and not ties and not coded_at_rest(model):
        owned = [(model, "hf_quantizer"), (model.base_model, "hf_quantizer"), (model.config, "quantization_config")]
        for owner, name in owned:
            vars(owner).pop(name, None)
        silence_(model.config)
    else:
        config = HFCompressConfig(modules, inner=read_inner(model), ties=ties or None)
        model.config.quantization_config = config  # type: ignore[union-attr]
        announce_(model.config)
        quantizer = HFCompressQuantizer(config, pre_quantized=True)
        model.hf_quantizer = quantizer  # type: ignore[assignment]
        _lend_(quantizer, model)
    mark_trainable_(model)


def _lend_(quantizer: HFCompressQuantizer, model: Any) -> None:
    """Let the base model inside `model`, whose config is the same, be saved alone as what it is."""
    base = model.base_model
    if base is not model and isinstance(base, PreTrainedModel):
        base.hf_quantizer = quantizer  # type: ignore[assignment]
        if coded_at_rest(model):
            code_at_rest_(base)
        apply_ties_(base, quantizer.quantization_config.ties or {})


def mark_trainable_(model: nn.Module) -> None:
    """Let Trainer and PEFT treat the model as what it is.

    That is an ordinary float model, even with packed layers in it; or, where another library holds layers, a quantized
    one of that library, which trains through adapters only.
    """
    _keep_words_from_ddp_(model)
    inner = read_inner(model)
    model.is_quantized = inner is not None  # type: ignore[assignment]
    for bits in ("4bit", "8bit"):
        vars(model).pop(f"is_loaded_in_{bits}", None)
        if inner is not None and inner.get(f"load_in_{bits}"):
            setattr(model, f"is_loaded_in_{bits}", True)
    if inner is not None:
        model.quantization_method = QuantizationMethod(inner["quant_method"])  # type: ignore[assignment]
        _keep_names_(model)
    elif "quantization_method" in vars(model):
        model.quantization_method = QUANT_METHOD  # type: ignore[assignment]


def _keep_words_from_ddp_(model: nn.Module) -> None:
    """Tell DistributedDataParallel which parameters its back ends can't send: 16-bit integers, alike in all processes.

    It looks for them by the names they have in what it wraps, which may be peft's model with this one inside.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.dtype == torch.int16]
    inside = [f"{path}.base_layer.{last}" for path, _, last in (name.rpartition(".") for name in names)]
    keep_from_ddp_(model, [prefix + name for prefix in ("", "base_model.model.") for name in (*names, *inside)])


def refuse_untrainable(model: nn.Module) -> None:
    """Raise LifecycleError for a model that another library's layers keep from training."""
    if isinstance(model, PreTrainedModel) and read_inner(model) is not None:
        raise LifecycleError(
            "a quantization library holds layers of this model, and they do not train: add adapters (peft's "
            "get_peft_model), or turn them into plain layers first (model.dequantize())"
        )


def _cast_(model: Any, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give float parameters the dtype asked for.

    Beside inner layers transformers reads every "weight" of a file in the dtype it was saved in.
    """
    kept = kept_in_float32(model, model.dtype)  # what a half-precision model keeps in float32
    for name, parameter in model.named_parameters():
        if name in dtypes and not any(re.search(pattern, name) for pattern in kept):
            parameter.data = parameter.data.to(dtypes[name])


def _keep_names_(model: Any) -> None:
    """Let inner layers be saved under the names they have in memory.

    Saving runs the conversions of loading backwards. Those that read inner layers have no way back, and those that join
    the weights of several layers cannot join codes; renaming stays.
    """
    conversions = load_conversions(model)
    if conversions is None:  # the model was not loaded; this is what saving would do
        mapping = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [c for c in mapping if not isinstance(c, PrefixChange)]
    set_load_conversions_(model, (c for c in conversions if isinstance(c, WeightRenaming)))
