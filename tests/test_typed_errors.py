"""Odd models, teachers and files end in an error that says what is wrong, and leave the model as it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from test_trainer import trainer
from tiny import make
from torch import nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel
from transformers.utils import logging

from hfcompress import (
    DistillConfig,
    MagnitudeConfig,
    MixedBitsConfig,
    QuantizeWeightsConfig,
    compress,
)
from hfcompress.checkpoint import load_model
from hfcompress.core.errors import CheckpointError, HFCompressError, LifecycleError, ModelError
from hfcompress.modules.at_rest import codable


class Own(PreTrainedModel):
    """Computes with its layer, or with that layer's weight in a way that its source does not show."""

    config_class = BertConfig

    def __init__(self, read: bool = False) -> None:
        super().__init__(BertConfig(vocab_size=30, hidden_size=16))
        self.words, self.layers = nn.Embedding(30, 16), nn.ModuleList([nn.Linear(16, 16)])
        self.read = read

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace | dict[str, torch.Tensor]:
        x = self.words(input_ids)
        if self.read:
            own = dict(self.layers[0].named_parameters())
            return {"logits": functional.linear(x, own["weight"], own["bias"])}
        return SimpleNamespace(logits=self.layers[0](x))


BATCH = {"input_ids": torch.arange(10).view(2, 5)}


def test_an_answer_of_the_users_own_kind_is_looked_into() -> None:
    model = compress(Own(), QuantizeWeightsConfig(bits=8), calibration=[BATCH])
    assert torch.isfinite(model(**BATCH).logits).all()


def test_a_method_that_runs_a_model_it_has_broken_says_so_and_puts_it_back() -> None:
    model = Own(read=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match="may read a layer's weight itself: add that layer to `ignore`"):
        compress(model, MixedBitsConfig(average_bits=4), calibration=[BATCH])
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


class Bare(Own):
    """Answers with a tensor alone."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.layers[0](self.words(input_ids)).mean(1)


def test_a_model_that_answers_with_a_tensor_alone_trains_by_a_loss_of_the_users_own(tmp_path) -> None:
    rows = [{"input_ids": torch.arange(5), "labels": torch.tensor(1)} for _ in range(8)]

    def run(**more):
        args = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
        method = [MagnitudeConfig(sparsity=0.5, targets=["Linear"])]
        made = trainer("bert", tmp_path, method, model=Bare(), args=args, **more)
        made.train_dataset = rows
        return made.train()

    with pytest.raises(LifecycleError, match=r"the model gives no loss.*compute_loss_func"):
        run()
    run(compute_loss_func=lambda outputs, labels, **_: functional.cross_entropy(outputs, labels))


def test_pickled_weights_are_not_opened(tmp_path, monkeypatch) -> None:
    logging.set_verbosity_error()
    model = make("bert")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(CheckpointError, match="safetensors"):
        load_model(tmp_path, AutoModelForSequenceClassification)


def test_a_teacher_of_fewer_tokens_is_refused_before_training(tmp_path) -> None:
    teacher = make("bert")
    teacher.resize_token_embeddings(5)
    with pytest.raises(LifecycleError, match="the teacher has no embedding for tokens that the student reads"):
        trainer("bert", tmp_path, [DistillConfig()], teacher=teacher).train()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "bert"}, "compress takes a model"),
        ({"model": None}, "compress takes a model"),
        ({"recipe": QuantizeWeightsConfig}, "QuantizeWeightsConfig is a class of settings: call it"),
        ({"calibration": BATCH}, "give a list of batches"),
        ({"calibration": torch.ones(2, 3)}, "give a list of batches"),
        ({"calibration": [(torch.ones(2, 3),)]}, "give a list of batches"),
    ],
)
def test_other_arguments_than_a_model_settings_and_batches_are_named(given, words) -> None:
    arguments = {"model": Own(), "recipe": QuantizeWeightsConfig(), **given}
    with pytest.raises(HFCompressError, match=words):
        compress(arguments.pop("model"), arguments.pop("recipe"), **arguments)


def test_a_model_without_values_is_refused_and_stays() -> None:
    with torch.device("meta"):
        model = make("bert")
    before = set(model.state_dict())
    with pytest.raises(LifecycleError, match="on the meta device"):
        compress(model, QuantizeWeightsConfig())
    assert set(model.state_dict()) == before


def test_what_another_librarys_parametrization_computes_from_is_not_coded() -> None:
    model = make("bert")
    torch.nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[0].output.dense)
    names = {name for name, _ in model.named_parameters() if ".layer.0.output.dense." in name}
    assert names & codable(model) == {"bert.encoder.layer.0.output.dense.bias"} and len(names) == 3
