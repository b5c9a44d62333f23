"""Models with adapters of peft: refused by what would change them, merged where a recipe asks, never inexactly."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from project import NAMES, text_project
from tiny import Examples, auto_class, logits, make
from torch import nn
from transformers import AutoModelForSequenceClassification, BertTokenizerFast, TrainingArguments

from hfcompress import (
    DistillConfig,
    HFCompressTrainer,
    LoRAConfig,
    MagnitudeConfig,
    QuantizeWeightsConfig,
    ShareLayersConfig,
    compress,
)
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import CheckpointError, RecipeError, TargetError
from hfcompress.publish.card import _bases, _link
from hfcompress.recipe.load import load_recipe
from hfcompress.run.execute import _baseline
from hfcompress.run.folder import RunFolder
from hfcompress.run.inspect import auto_class_of
from hfcompress.run.measuring import sources
from hfcompress.run.reporter import Reporter
from hfcompress.run.setup import open_recipe
from hfcompress.run.state import Run

AUTO = auto_class("bert")
LORA = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"]}


def trained(model: nn.Module, config: peft.PeftConfig | None = None) -> peft.PeftModel:
    """Return the model under adapters with values as after a training."""
    found = peft.get_peft_model(model, config or peft.LoraConfig(**LORA))
    generator = torch.Generator().manual_seed(3)
    for parameter in found.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return found.eval()


def adapter(folder: Path, config: peft.PeftConfig | None = None, **head: int) -> tuple[Path, peft.PeftModel]:
    """Save an adapter of the model in `folder`/base, and return its folder and the model under it."""
    model = trained(AutoModelForSequenceClassification.from_pretrained(folder / "base", **head), config)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter", model


def trainer(model: nn.Module, folder: Path, *recipe) -> HFCompressTrainer:
    args = TrainingArguments(
        str(folder), max_steps=1, report_to=[], logging_strategy="no", save_strategy="no", use_cpu=True
    )
    return HFCompressTrainer(model=model, args=args, train_dataset=Examples("bert"), recipe=list(recipe))


# ---------------------------------------------------------------------- in memory


def unread():
    raise AssertionError("data was read")
    yield {}


def test_what_changes_a_model_refuses_adapters_before_it_reads_data(tmp_path):
    for model in (trained(make("bert")), trained(make("bert")).base_model.model):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(TargetError, match=r"has adapters already \(peft\).*merge_and_unload\(\)"):
            compress(model, QuantizeWeightsConfig(), calibration=unread())
        with pytest.raises(TargetError, match="not what magnitude leaves"):
            trainer(model, tmp_path, MagnitudeConfig(), DistillConfig())
        with pytest.raises(CheckpointError, match="this model has adapters"):
            save_checkpoint(model, tmp_path / "m")
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not (tmp_path / "m").exists()


def test_adapters_that_lie_inside_the_model_are_not_trained_here(tmp_path):
    model = make("bert")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["query"]), model)
    with pytest.raises(TargetError, match="lie inside it, where training can't be resumed"):
        trainer(model, tmp_path, DistillConfig())
    wrapped = trainer(trained(make("bert")), tmp_path, DistillConfig())
    wrapped.train()
    assert type(wrapped.model).__name__.startswith("Peft")


def test_the_merged_model_compresses():
    compress(trained(make("bert")).merge_and_unload(), QuantizeWeightsConfig())


# ---------------------------------------------------------------------- layers that share weights


@pytest.mark.parametrize("layers", [None, [0], [1]])
@pytest.mark.parametrize("loaded", [False, True])
def test_adapters_on_shared_weights_are_not_merged(layers, loaded, tmp_path):
    """One layer's adapter changed the others, and each of several was added to the one weight: wrong by 0.006."""
    model = compress(make("bert"), ShareLayersConfig(group=[[0, 1]]))
    if loaded:
        model = load_model(save_checkpoint(model, tmp_path), AUTO)
    more = {} if layers is None else {"layers_to_transform": layers, "layers_pattern": "layer"}
    wrapped = trained(model, peft.LoraConfig(**LORA, **more))
    before = logits(wrapped, "bert")
    for merge in (wrapped.merge_and_unload, wrapped.merge_adapter):
        with pytest.raises(TargetError, match="adapters can't be merged exactly"):
            merge()
    assert torch.equal(logits(wrapped, "bert"), before)


def test_adapters_beside_shared_weights_are_merged():
    model = compress(make("bert"), ShareLayersConfig(group=[[0, 1]]))
    config = peft.LoraConfig(**LORA, layers_to_transform=[2], layers_pattern="layer")
    for each in (trained(model, config), trained(make("bert"))):
        before = logits(each, "bert")
        assert torch.allclose(logits(each.merge_and_unload(), "bert"), before, atol=1e-5)


def test_our_own_adapters_on_shared_weights_are_merged_once(tmp_path):
    run = trainer(compress(make("bert"), ShareLayersConfig(group=[[0, 1]])), tmp_path, LoRAConfig(r=2))
    run.train()
    assert run.compression_report["lora"]["merged"] == 12


# ---------------------------------------------------------------------- folders


def test_an_adapter_is_merged_on_request_and_is_then_a_stock_model(tmp_path):
    text_project(tmp_path)
    folder, model = adapter(tmp_path)
    with pytest.raises(CheckpointError, match=r"is an adapter of peft.*merge_adapters: true"):
        load_model(folder, AUTO)
    with pytest.raises(CheckpointError, match="is an adapter of peft"):
        auto_class_of(str(folder))  # which export, bench and inspect ask first
    merged = load_model(folder, AUTO, merge_adapters=True)
    assert torch.allclose(logits(merged, "bert"), logits(model, "bert"), atol=1e-5)
    assert merged.state_dict().keys() == make("bert").state_dict().keys()
    assert all(p.requires_grad for p in merged.parameters())
    again = load_model(save_checkpoint(merged, tmp_path / "whole"), AUTO)
    assert torch.allclose(logits(again, "bert"), logits(model, "bert"), atol=1e-5)


def test_a_head_that_the_adapter_brings_is_taken(tmp_path):
    make("bert").bert.save_pretrained(tmp_path / "base")
    folder, model = adapter(tmp_path, num_labels=5)
    merged = load_model(folder, AUTO, merge_adapters=True)
    assert merged.config.num_labels == 5
    assert torch.allclose(logits(merged, "bert"), logits(model, "bert"), atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(**LORA, use_dora=True),
        peft.IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[]),
    ],
    ids=["dora", "ia3"],
)
def test_other_adapters_of_weights_are_merged(config, tmp_path):
    text_project(tmp_path)
    folder, model = adapter(tmp_path, config)
    assert torch.allclose(
        logits(load_model(folder, AUTO, merge_adapters=True), "bert"), logits(model, "bert"), atol=1e-4
    )


def test_what_cannot_be_merged_exactly_is_refused(tmp_path, monkeypatch):
    text_project(tmp_path)
    folder, _ = adapter(tmp_path, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))
    with pytest.raises(CheckpointError, match="PROMPT_TUNING, which changes no weights"):
        load_model(folder, AUTO, merge_adapters=True)
    folder, _ = adapter(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("peft.PeftModel.merge_and_unload", lambda self: self.unload(), raising=False)
        with pytest.raises(CheckpointError, match="can't be merged exactly"):
            load_model(folder, AUTO, merge_adapters=True)
    save_checkpoint(compress(make("bert"), QuantizeWeightsConfig()), tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"does not fit|held in codes"):
        load_model(folder, AUTO, merge_adapters=True)
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**values, "base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match="does not say of which model"):
        load_model(folder, AUTO, merge_adapters=True)


# ---------------------------------------------------------------------- recipes


def test_a_recipe_says_whether_adapters_are_merged(tmp_path, monkeypatch):
    path = text_project(tmp_path, stages=[{"methods": {"distill": {}}, "train": {"max_steps": 1}}])
    folder, model = adapter(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("hfcompress.run.setup.load_data", unread)
        for key in ("model", "teacher", "student"):
            with pytest.raises(CheckpointError, match=rf"^{key}: .* is an adapter of peft"):
                open_recipe(load_recipe(path, [f"{key}={folder}"]))
        with pytest.raises(RecipeError, match="merge_adapters: none of model, teacher and student"):
            open_recipe(load_recipe(path, ["merge_adapters=true"]))
    setup = open_recipe(load_recipe(path, [f"model={folder}", f"teacher={folder}", "merge_adapters=true"]))
    assert isinstance(setup.processor, BertTokenizerFast) or setup.processor.get_vocab()  # that of the base
    place = RunFolder(tmp_path / "run")
    baseline = _baseline(Run(setup, place, Reporter()))
    assert torch.allclose(logits(baseline, "bert"), logits(model, "bert"), atol=1e-5)
    measured = sources(setup, setup, place)["baseline"]
    assert measured.checkpoint == str(place.baseline)
    assert torch.allclose(logits(load_model(place.baseline, AUTO), "bert"), logits(model, "bert"), atol=1e-5)
    assert [baseline.config.id2label[i] for i in range(3)] == NAMES


def test_the_card_names_base_and_adapter():
    from hfcompress.measure.result import Source

    made = Source(id="me/adapter", hub=True, base=Source(id="google/bert", hub=True))
    assert _bases(made) == ["me/adapter", "google/bert"]
    said = "[google/bert](h/google/bert) with the adapter [me/adapter](h/me/adapter) merged into it"
    assert _link(made, "h/") == said
    assert _bases(Source(id="here")) is None and _bases(Source(id="me/model", hub=True)) == "me/model"
