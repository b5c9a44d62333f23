"""Every private name of another library that we lean on does what we take it for; and no other is used anywhere."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest
import torch
from tiny import batch, make, tokenizer
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)
from transformers.quantizers.base import HfQuantizer

import hfcompress
from hfcompress.checkpoint import save_checkpoint
from hfcompress.checkpoint.loader import HFCompressQuantizer
from hfcompress.core import foreign_internals as foreign
from hfcompress.modules.storage import Packed
from hfcompress.train.checkpointing import PlainTrainer
from hfcompress.train.trainer import HFCompressTrainer

PACKAGE = Path(hfcompress.__file__).parent
HOME = PACKAGE / "core" / "foreign_internals.py"
_OURS = "hfcompress."
TINY = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TINY_T5 = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}


# ---------------------------------------------------------------------- torch


def test_parameters_and_buffers_are_replaced_through_their_tables():
    layer = nn.BatchNorm1d(3)
    assert foreign.parameters_of(layer)["weight"] is layer.weight
    assert foreign.buffers_of(layer)["running_mean"] is layer.running_mean
    foreign.parameters_of(layer)["weight"] = nn.Parameter(torch.ones(2))
    foreign.buffers_of(layer)["running_mean"] = torch.ones(2)
    assert layer.weight.shape == layer.running_mean.shape == (2,)
    assert "weight" not in foreign.parameters_of(nn.utils.parametrizations.orthogonal(nn.Linear(2, 2)))


def test_children_are_read_from_their_table():
    inner = nn.Linear(2, 2)
    assert foreign.children_of(nn.Sequential(inner)) == {"0": inner}


def test_no_hook_of_a_pass_that_asks_for_states_stays_on():
    model = make("bert")
    kept = model.bert.register_forward_hook(lambda *_: None)
    hooked = lambda: [module for module in model.modules() if module._forward_hooks]  # noqa: E731
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.long), "output_hidden_states": True}
    with foreign.without_lasting_hooks(model):
        states = model(**batch).hidden_states
        assert len(hooked()) > 1
    assert hooked() == [model.bert]
    assert len(model(**batch).hidden_states) == len(states)  # they come on again where they are asked for
    kept.remove()


def test_which_buffers_are_stored():
    layer = nn.Module()
    layer.register_buffer("kept", torch.zeros(1))
    layer.register_buffer("left", torch.zeros(1), persistent=False)
    assert [foreign.is_stored(layer, name) for name in ("kept", "left")] == [
        name in layer.state_dict() for name in ("kept", "left")
    ]


def test_a_part_of_a_larger_tensor_is_known():
    from torch.distributed.tensor import DTensor

    assert "_local_tensor" in DTensor.__slots__ or "_local_tensor" in DTensor.__annotations__
    assert not foreign.is_sharded(torch.zeros(1))


def test_convert_reaches_every_parameter_and_buffer():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    foreign.convert_(model, lambda tensor: tensor.new_empty(0))
    assert sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers())) == 0


def test_hooks_are_seen():
    def hook(*_):
        return None

    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    assert not foreign.has_forward_hooks(one)
    one.register_forward_hook(hook)
    two.register_forward_pre_hook(hook)
    assert foreign.has_forward_hooks(one) and foreign.has_forward_hooks(two)
    assert foreign.forward_hooks_of(one) == [hook] and foreign.forward_hooks_of(two) == []


def test_what_transformers_leaves_in_a_model_asked_for_hidden_states_is_no_ones_hook():
    model = make("bert")
    model(**batch("bert"), output_hidden_states=True)
    hooks = [hook for module in model.modules() for hook in foreign.forward_hooks_of(module)]
    assert hooks
    assert not any(foreign.has_forward_hooks(module) for module in model.modules())


def test_a_version_counts_changes_in_place():
    tensor = torch.zeros(2)
    before = foreign.version_of(tensor)
    assert foreign.version_of(tensor) == before
    tensor.add_(1)
    assert foreign.version_of(tensor) > before


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_storage_is_one_for_views_and_another_for_another_tensor(device):
    tensor, other = torch.zeros(4, device=device), torch.zeros(4, device=device)
    assert foreign.storage_of(tensor) == foreign.storage_of(tensor[2:]) != foreign.storage_of(other)


def test_the_base_classes_of_norms_and_convolutions():
    for layer in (nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2)):
        assert isinstance(layer, foreign.AnyBatchNorm)
    for layer in (nn.Conv1d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.ConvTranspose2d(2, 2, 1)):
        assert isinstance(layer, foreign.AnyConvolution)
    assert not isinstance(nn.LayerNorm(2), foreign.AnyBatchNorm) and not isinstance(
        nn.Linear(2, 2), foreign.AnyConvolution
    )


def test_the_compiler_has_the_limits_that_are_set():
    config = foreign.compiler_config()
    for name in ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit"):
        assert hasattr(config, name), name


def test_ddp_reads_which_parameters_to_leave_alone_where_we_write_them():
    ours, theirs = nn.Linear(2, 2), nn.Linear(2, 2)
    foreign.keep_from_ddp_(ours, ["weight"])
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(theirs, ["weight"])
    assert vars(ours).keys() == vars(theirs).keys()
    assert ours._ddp_params_and_buffers_to_ignore == theirs._ddp_params_and_buffers_to_ignore


# ---------------------------------------------------------------------- transformers' models


def test_ties_are_declared_from_name_to_name_and_saving_keeps_one_of_two():
    model = BertForMaskedLM(BertConfig(**TINY))
    stock = foreign.stock_ties(model)
    assert stock["cls.predictions.decoder.weight"] == "bert.embeddings.word_embeddings.weight"
    assert foreign.declared_ties(model) == stock and foreign.own_declared_ties(model) == {}
    more = {"bert.encoder.layer.0.output.LayerNorm.weight": "bert.embeddings.LayerNorm.weight"}
    foreign.set_declared_ties_(model, {**stock, **more})
    assert foreign.own_declared_ties(model) == foreign.declared_ties(model) == {**stock, **more}
    assert foreign.stock_ties(model) == stock


def test_a_tie_that_is_declared_is_saved_once(tmp_path):
    model = BertForMaskedLM(BertConfig(**TINY))
    norms = model.bert.embeddings.LayerNorm, model.bert.encoder.layer[0].output.LayerNorm
    norms[1].weight = norms[0].weight
    tie = {"bert.encoder.layer.0.output.LayerNorm.weight": "bert.embeddings.LayerNorm.weight"}
    with pytest.raises(RuntimeError, match="shared tensors"):
        model.save_pretrained(tmp_path)
    foreign.set_declared_ties_(model, {**foreign.stock_ties(model), **tie})
    model.save_pretrained(tmp_path)


def test_tying_pads_the_bias_and_can_be_told_not_to():
    output, table = nn.Linear(4, 3), nn.Embedding(5, 4)
    output.weight = table.weight
    foreign.pad_bias_(output, table)
    assert output.bias.shape == (5,)
    model, asked = BertForMaskedLM(BertConfig(**TINY)), []
    foreign.replace_bias_padding_(model, lambda output, source: asked.append(type(output)))
    model.tie_weights()
    assert asked and set(asked) == {nn.Linear}


def test_adapters_of_the_users_are_told_from_none(monkeypatch):
    import peft
    from transformers.integrations import peft as theirs

    model = make("bert")
    assert not foreign.has_users_adapters(model)
    with foreign.taken_for_adapted(model):
        assert foreign.has_users_adapters(model)
    assert not foreign.has_users_adapters(model)
    monkeypatch.setattr(theirs, "check_peft_version", lambda min_version: None)  # it may want one that is not out yet
    model.add_adapter(peft.LoraConfig(target_modules=["query"]))
    assert foreign.has_users_adapters(model)


def test_what_says_it_is_initialized_is_left_alone():
    model = make("bert")
    dense = model.bert.encoder.layer[0].output.dense
    for module in model.modules():  # as one is that was never initialized
        vars(module).pop("_is_hf_initialized", None)
    for layer in (dense, model.classifier):
        nn.init.zeros_(layer.weight)
    assert not foreign.is_initialized(dense)
    foreign.say_initialized_(dense)
    assert foreign.is_initialized(dense)
    model.initialize_weights()
    assert not dense.weight.any() and model.classifier.weight.any()


def test_a_loaded_tensor_says_that_it_is_initialized(tmp_path):
    make("bert").save_pretrained(tmp_path)
    loaded = type(make("bert")).from_pretrained(tmp_path)
    assert all(foreign.is_initialized(parameter) for parameter in loaded.parameters())


def test_a_model_says_what_a_file_may_lack(monkeypatch):
    model = make("bert")
    assert foreign.may_be_missing(model) == []
    monkeypatch.setattr(type(model), "_keys_to_ignore_on_load_missing", ["pooler"])
    assert foreign.may_be_missing(make("bert")) == ["pooler"]


def test_a_model_says_what_a_file_may_hold_beyond_it(monkeypatch):
    monkeypatch.setattr(type(make("bert")), "_keys_to_ignore_on_load_unexpected", ["position_ids"])
    assert foreign.may_be_left_out(make("bert")) == ["position_ids"]


def test_a_model_says_what_stays_in_float32():
    model = T5ForConditionalGeneration(T5Config(**TINY_T5))
    assert "wo" in foreign.float32_modules(model) and foreign.float32_modules(make("bert")) == []
    assert any("wo" in name for name in foreign.kept_in_float32(model, torch.float16))
    assert not foreign.kept_in_float32(make("bert"), torch.float16)


def test_what_loading_converted_is_remembered(tmp_path):
    model = make("vit")
    assert foreign.load_conversions(model) is None
    save_checkpoint(model, tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert foreign.load_conversions(loaded)
    foreign.set_load_conversions_(loaded, foreign.load_conversions(loaded)[:1])
    assert len(foreign.load_conversions(loaded)) == 1


def test_a_class_with_code_of_its_own_is_known(monkeypatch):
    model = make("bert")
    assert not foreign.comes_with_code(model)
    own = type("Own", (type(model),), {})
    own.register_for_auto_class("AutoModelForSequenceClassification")
    assert foreign.comes_with_code(own(model.config))


def test_how_a_model_attends_can_be_read_and_set():
    model = make("bert")
    assert foreign.attention_of(model) == "sdpa"
    model.set_attn_implementation("eager")
    assert foreign.attention_of(model) == "eager"


def test_an_auto_class_knows_its_models_by_config_and_by_name():
    found = foreign.model_classes("AutoModelForMaskedLM")
    assert found[BertConfig] is BertForMaskedLM and T5Config not in foreign.model_classes(
        "AutoModelForImageClassification"
    )
    assert "BertForMaskedLM" in foreign.model_class_names("AutoModelForMaskedLM")


def test_a_configs_dictionary_says_where_it_came_from():
    config = AutoConfig.for_model("bert")
    config.name_or_path = "somewhere"
    assert config.to_dict()[foreign.NAME_OR_PATH] == "somewhere"


# ---------------------------------------------------------------------- tokenizers, peft


def test_a_tokenizers_inside_can_be_replaced():
    one = tokenizer("bert")
    state = one.backend_tokenizer.to_str()
    foreign.set_backend_(one, Tokenizer.from_str(state))
    assert one.backend_tokenizer.to_str() == state
    other = Tokenizer.from_str(state)
    other.add_tokens(["zebra"])
    foreign.set_backend_(one, other)
    assert "zebra" in one.get_vocab()


def test_peft_takes_an_adapter_for_a_class_it_does_not_know():
    import peft
    from peft.tuners.lora import Linear

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 2, 2
            self.weight = nn.Parameter(torch.eye(2))

        def forward(self, x):
            return x @ self.weight.T

    config = peft.LoraConfig(target_modules=["0"])
    with pytest.raises(ValueError, match="not supported"):
        peft.inject_adapter_in_model(config, nn.Sequential(Own()), adapter_name="x")
    foreign.adapt_with_(config, {Own: Linear})
    assert isinstance(peft.inject_adapter_in_model(config, nn.Sequential(Own()), adapter_name="x")[0], Linear)


def test_peft_asks_before_it_merges(monkeypatch):
    import peft

    tuners, asked = importlib.import_module(foreign.TUNERS), []
    monkeypatch.setattr(tuners.BaseTuner, "_check_merge_allowed", tuners.BaseTuner._check_merge_allowed)

    def refuse(model):
        asked.append(model)

    for _ in range(2):
        foreign.ask_before_merges_(tuners, refuse)
    model = nn.Sequential(nn.Linear(2, 2))
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"])).merge_and_unload()
    assert asked == [model]


# ---------------------------------------------------------------------- methods of subclasses

BASES = [
    ((HFCompressTrainer, PlainTrainer), Trainer, foreign.TRAINER_METHODS),
    ((HFCompressQuantizer,), HfQuantizer, foreign.QUANTIZER_METHODS),
    ((Packed,), nn.Module, foreign.MODULE_METHODS),
]


@pytest.mark.parametrize(("ours", "base", "methods"), BASES, ids=lambda found: getattr(found, "__name__", ""))
def test_the_base_class_has_the_methods_with_the_parameters_that_are_relied_on(ours, base, methods):
    for name, parameters in methods.items():
        known = inspect.signature(getattr(base, name)).parameters
        assert set(parameters) <= set(known), f"{base.__name__}.{name} takes {list(known)}"


def test_the_trainer_fills_the_columns_it_keeps():
    trainer = Trainer(make("bert"))
    trainer._set_signature_columns_if_needed()
    for name in foreign.TRAINER_ATTRIBUTES:
        assert "input_ids" in getattr(trainer, name)


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


@pytest.mark.parametrize(("ours", "base", "methods"), BASES, ids=lambda found: getattr(found, "__name__", ""))
def test_no_other_private_method_of_a_base_class_is_overridden(ours, base, methods):
    mixed = {cls for one in ours for cls in one.__mro__ if cls.__module__.startswith(_OURS)}
    taken = {name for cls in mixed for name, value in vars(cls).items() if _private(name) and callable(value)}
    taken = {name for name in taken if hasattr(base, name)}
    assert taken <= set(methods)


# ---------------------------------------------------------------------- nothing else


GUARDED = {
    name
    for node in ast.walk(ast.parse(HOME.read_text(encoding="utf-8")))
    for name in [getattr(node, "attr", None), node.value if isinstance(node, ast.Constant) else None]
    if isinstance(name, str) and _private(name) and name.isidentifier()
}  # the private names of that file, which are not to be spelt out elsewhere either
NO_PRIVATE = {"os._exit"}  # documented under that name


def private_uses(text: str, known: set[str]) -> list[str]:
    """Return what a file reads of others under private names; `known`: names that the package itself defines."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and _private(node.attr):
            owner = ast.unparse(node.value)
            if (owner in ("self", "cls", "super()") and node.attr in known) or f"{owner}.{node.attr}" in NO_PRIVATE:
                continue
            found.append(f"{node.lineno}: {owner}.{node.attr}")
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "getattr",
            "hasattr",
            "setattr",
            "delattr",
        ):
            name = node.args[1] if len(node.args) > 1 else None
            if isinstance(name, ast.Constant) and _private(str(name.value)) and ast.unparse(node.args[0]) != "self":
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Constant) and node.value in GUARDED:
            found.append(f"{node.lineno}: {node.value!r}")
        elif isinstance(node, ast.Import):
            found += [f"{node.lineno}: {a.name}" for a in node.names if any(map(_private, a.name.split(".")))]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [f"{node.lineno}: {name}" for name in names if _private(name)]
    return found


def defined(tree: ast.Module) -> set[str]:
    """Return the private names that the classes of a file give themselves."""
    names = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and getattr(node.value, "id", "") == "self"
        ):
            names.add(node.attr)
        elif isinstance(node, ast.ClassDef):
            targets = [
                t
                for n in node.body
                for t in ([n.target] if isinstance(n, ast.AnnAssign) else getattr(n, "targets", []))
            ]
            names |= {t.id for t in targets if isinstance(t, ast.Name)}
    return {name for name in names if _private(name)}


def test_private_names_of_other_libraries_stand_in_one_file():
    texts = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path != HOME}
    known = {name for text in texts.values() for name in defined(ast.parse(text))}
    known |= {
        *foreign.TRAINER_METHODS,
        *foreign.TRAINER_ATTRIBUTES,
        *foreign.MODULE_METHODS,
        *foreign.MODULE_ATTRIBUTES,
    }
    wrong = {
        str(path.relative_to(PACKAGE)): uses for path, text in texts.items() if (uses := private_uses(text, known))
    }
    assert not wrong, f"put these into {HOME.relative_to(PACKAGE)}, each with a test: {wrong}"


def test_every_function_of_that_file_has_a_test_and_a_use():
    own = {n.name for n in ast.parse(HOME.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)}
    here = Path(__file__).read_text(encoding="utf-8")
    others = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path != HOME)
    assert not [name for name in own if f"foreign.{name}(" not in here or name not in others]


@pytest.mark.parametrize(
    "code",
    [
        "model._tied_weights_keys",
        "self._unheard_of",
        "getattr(model, '_x', None)",
        "vars(model)['_parameters']",
        "import torch._dynamo",
        "from torch._inductor import config",
        "from transformers import _x",
        "super()._unheard_of()",
    ],
)
def test_a_private_name_is_found(code):
    assert private_uses(code, {"_own"})
    assert not private_uses("self._own\nfrom .x import _y\nx.__dict__\ngetattr(self, '_z', 0)", {"_own"})
