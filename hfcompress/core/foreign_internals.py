"""What this package uses of other libraries that they call private, all of it: nothing else may, a test sees to that.

Each has a test in tests/test_foreign_internals.py, so that a release that changes one breaks the test that names it.
Methods that a subclass has to override, or calls on itself, stay where they are; `TRAINER_METHODS` and the tables
beside it name them, with the parameters that are relied on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor, nn

# ---------------------------------------------------------------------- methods overridden or called in subclasses

TRAINER_METHODS: Mapping[str, tuple[str, ...]] = {
    "_determine_best_metric": ("metrics", "trial"),
    "_get_collator_with_removed_columns": ("data_collator",),
    "_get_num_items_in_batch": ("batch_samples", "device"),
    "_get_train_sampler": ("train_dataset",),
    "_load_best_model": (),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_prepare_inputs": ("inputs",),
    "_save": ("output_dir", "state_dict"),
    "_save_checkpoint": ("model", "trial"),
    "_set_signature_columns_if_needed": (),
}
TRAINER_ATTRIBUTES = ("_signature_columns",)  # columns the model's forward takes, once the method above has run
QUANTIZER_METHODS: Mapping[str, tuple[str, ...]] = {
    "_process_model_after_weight_loading": ("model",),
    "_process_model_before_weight_loading": ("model",),
}
MODULE_METHODS: Mapping[str, tuple[str, ...]] = {"_apply": ("fn", "recurse")}
MODULE_ATTRIBUTES = ("_parameters",)

# ---------------------------------------------------------------------- torch

AnyBatchNorm = nn.modules.batchnorm._BatchNorm  # of any number of dimensions
AnyConvolution = nn.modules.conv._ConvNd  # transposed ones included


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the module's own parameters by name; to write into it replaces one, whatever its shape."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the module's own buffers by name; to write into it replaces one."""
    return module._buffers


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the module's own children by name, also under names that its class has a property of."""
    return module._modules


def is_stored(module: nn.Module, buffer: str) -> bool:
    """Say whether a checkpoint holds the module's buffer of this name."""
    return buffer not in module._non_persistent_buffers_set


def is_sharded(tensor: Tensor) -> bool:
    """Say whether the tensor is the part of a larger one that this process holds."""
    return hasattr(tensor, "_local_tensor")


def convert_(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Replace every parameter and buffer, in place, by what `change` makes of it."""
    module._apply(change)


def forward_hooks_of(module: nn.Module) -> list[Any]:
    """Return the functions that are called after the module's forward."""
    return list(module._forward_hooks.values())


def has_forward_hooks(module: nn.Module) -> bool:
    """Say whether something is called before or after the module's forward.

    What transformers leaves in a model once asked for its hidden states does nothing until it is asked again.
    """
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(getattr(hook, "__module__", None) != "transformers.utils.output_capturing" for hook in hooks)


@contextmanager
def without_lasting_hooks(*models: nn.Module) -> Iterator[None]:
    """Take off, at the end, what began to listen to the models meanwhile: transformers' own hooks stay on otherwise."""
    flag = "_output_capturing_hooks_installed"
    modules = [module for model in models for module in model.modules()]
    before = [(m, {*m._forward_hooks, *m._forward_pre_hooks}, flag in vars(m)) for m in modules]
    try:
        yield
    finally:
        for module, hooks, installed in before:
            for held in (module._forward_hooks, module._forward_pre_hooks):
                for key in [key for key in held if key not in hooks]:
                    del held[key]
            if not installed:
                vars(module).pop(flag, None)


def version_of(tensor: Tensor) -> int:
    """Return how many times the tensor was changed in place."""
    return tensor._version


def storage_of(tensor: Tensor) -> int:
    """Return the same number for tensors that share their memory, on the meta device too, where addresses are 0."""
    return tensor.untyped_storage()._cdata


def compiler_config() -> Any:
    """Return the settings of `torch.compile`'s front end."""
    import torch._dynamo

    return torch._dynamo.config


def keep_from_ddp_(model: nn.Module, names: Iterable[str]) -> None:
    """Let DistributedDataParallel leave alone the parameters of these names in what it wraps."""
    model._ddp_params_and_buffers_to_ignore = list(names)  # type: ignore[assignment]


# ---------------------------------------------------------------------- models of transformers

NAME_OR_PATH = "_name_or_path"  # key of a config's dictionary that says where it was loaded from


def stock_ties(model: Any) -> dict[str, str]:
    """Return the ties that the model's class declares, {name: name of the parameter it is}."""
    return getattr(type(model), "_tied_weights_keys", None) or {}


def declared_ties(model: Any) -> dict[str, str]:
    """Return the ties by which transformers saves the model: its class's, or those it was given of its own."""
    return model._tied_weights_keys or {}


def own_declared_ties(model: Any) -> dict[str, str]:
    """Return the ties that this object was given, beyond its class."""
    return vars(model).get("_tied_weights_keys") or {}


def set_declared_ties_(model: Any, ties: Mapping[str, str]) -> None:
    """Set the ties by which transformers saves the model."""
    model._tied_weights_keys = dict(ties)


def replace_bias_padding_(model: Any, adjust: Callable[[nn.Module, Any], None]) -> None:
    """Set what transformers calls, with (output layer, embedding), to pad an output's bias when it ties its weight."""
    model._adjust_bias = adjust


def pad_bias_(output: nn.Module, source: Any) -> None:
    """Pad the bias of an output layer to the rows of its weight, as transformers does by itself."""
    from transformers import PreTrainedModel

    PreTrainedModel._adjust_bias(None, output, source)  # type: ignore[arg-type]


def has_users_adapters(model: Any) -> bool:
    """Say whether adapters were added to the model by transformers' own methods, and are saved instead of it."""
    return model._hf_peft_config_loaded


@contextmanager
def taken_for_adapted(model: Any) -> Iterator[None]:
    """Let transformers take the model for one with adapters for a while."""
    before = model._hf_peft_config_loaded
    model._hf_peft_config_loaded = True
    try:
        yield
    finally:
        model._hf_peft_config_loaded = before


def say_initialized_(holder: nn.Module | Tensor) -> None:
    """Keep transformers from giving a module, or a tensor, new values when it loads a model."""
    holder._is_hf_initialized = True  # type: ignore[union-attr]


def is_initialized(holder: nn.Module | Tensor) -> bool:
    """Say whether a module or tensor has its values: from a file, or by a model's own rule."""
    return getattr(holder, "_is_hf_initialized", False)


def may_be_missing(model: Any) -> list[str]:
    """Return, as patterns of names, what a file of the model may lack without a word."""
    return list(model._keys_to_ignore_on_load_missing or ())


def may_be_left_out(model: Any) -> list[str]:
    """Return, as patterns of names, what a file may hold beyond the model's tensors without a word."""
    return list(model._keys_to_ignore_on_load_unexpected or ())


def kept_in_float32(model: Any, dtype: Any) -> Mapping[str, Any]:
    """Return, by pattern of names, which parameters a model of `dtype` keeps in another."""
    return model._get_dtype_plan(dtype)


def float32_modules(model: Any) -> list[str]:
    """Return the names of the modules that the model's class keeps in float32 in half precision."""
    names = [*(getattr(model, "_keep_in_fp32_modules", None) or ())]
    return [*names, *(getattr(model, "_keep_in_fp32_modules_strict", None) or ())]


def load_conversions(model: Any) -> list[Any] | None:
    """Return what was done to names and tensors of the file to load the model, and is undone to save it."""
    return getattr(model, "_weight_conversions", None)


def set_load_conversions_(model: Any, conversions: Iterable[Any]) -> None:
    """Set what saving the model undoes."""
    model._weight_conversions = list(conversions)


def comes_with_code(model: Any) -> bool:
    """Say whether saving the model takes along the Python file of its class."""
    return type(model)._auto_class is not None


def attention_of(model: Any) -> str | None:
    """Return the name of the way in which the model computes attention; None where it has no such choice."""
    return getattr(model.config, "_attn_implementation", None)


def model_classes(auto_class: str) -> Mapping[type, Any]:
    """Return the model class, or a tuple of them, by config class, of an Auto class of transformers."""
    import transformers

    return getattr(transformers, auto_class)._model_mapping


def model_class_names(auto_class: str) -> list[str]:
    """Return the names of the model classes of an Auto class, without importing the classes."""
    names = model_classes(auto_class)._model_mapping.values()  # type: ignore[attr-defined]
    return [name for entry in names for name in ((entry,) if isinstance(entry, str) else entry)]


# ---------------------------------------------------------------------- tokenizers, peft


def set_backend_(tokenizer: Any, backend: Any) -> None:
    """Replace the `tokenizers.Tokenizer` inside a fast tokenizer."""
    tokenizer._tokenizer = backend


def adapt_with_(config: Any, adapters: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Tell a config of peft which adapter goes on layers of a class that peft does not know."""
    config._register_custom_module(dict(adapters))


TUNERS = "peft.tuners.tuners_utils"  # the module of the class below


def ask_before_merges_(tuners: ModuleType, refuse: Callable[[nn.Module], None]) -> None:
    """Let peft call `refuse` with the model before it merges adapters into it, once however often this is called."""
    check = tuners.BaseTuner._check_merge_allowed
    if getattr(check, "_refuse", None) is refuse:
        return

    def asked(self: Any) -> None:
        check(self)
        refuse(self.model)

    asked._refuse = refuse  # type: ignore[attr-defined]
    tuners.BaseTuner._check_merge_allowed = asked
