"""A model that no longer runs, or answers in another form, never comes back as a success."""

from __future__ import annotations

import logging

import pytest
import torch
from awkward import MODELS, build, same, standing
from tiny import MODELS as PLAIN
from torch import nn
from transformers import TrainingArguments

from hfcompress import HFCompressTrainer, MagnitudeConfig, QuantizeWeightsConfig, compress
from hfcompress.core.errors import ModelError, TargetError
from hfcompress.core.synthetic_inputs import run, synthetic_batch
from hfcompress.methods.quantize_weights import QuantizeWeights
from hfcompress.modules import parametrizations
from hfcompress.train.forward_check import ForwardCheck


def _breaking(monkeypatch, harm):
    """Let the method do harm after it has done its work."""
    finalize = QuantizeWeights.finalize

    def broken(self, model):
        finalize(self, model)
        harm(model)

    monkeypatch.setattr(QuantizeWeights, "finalize", broken)


def _no_longer_runs(model):
    model.classifier = nn.Linear(5, 3)


def _not_finite(model):
    model.classifier.bias.fill_(float("nan"))


def _other_shape(model):
    model.classifier = nn.Linear(model.classifier.in_features, 7)


HARMS = {_no_longer_runs: "no longer runs", _not_finite: "not finite", _other_shape: "another shape"}


@pytest.mark.parametrize(("harm", "real"), [(_no_longer_runs, False), (_not_finite, True), (_other_shape, False)])
def test_a_broken_model_is_put_back_and_the_error_says_what_is_wrong(harm, real, monkeypatch):
    _breaking(monkeypatch, harm)
    model = PLAIN["bert"]()
    before, config = standing(model), model.config.to_dict()
    batch = [{"input_ids": torch.randint(5, 99, (4, 6))}] if real else None
    with pytest.raises(ModelError, match=HARMS[harm]):
        compress(model, [MagnitudeConfig(sparsity=0.5), QuantizeWeightsConfig()], calibration=batch)
    assert same(before, standing(model)) and model.config.to_dict() == config
    assert not hasattr(model, "hf_quantizer") and model.training


def test_stages_before_the_one_that_fails_are_undone_too(monkeypatch):
    model = PLAIN["bert"]()
    before = standing(model)
    with pytest.raises(TargetError):
        compress(model, [MagnitudeConfig(sparsity=0.5), QuantizeWeightsConfig(targets=["nowhere"])])
    assert same(before, standing(model))


def test_a_failing_cleanup_is_a_note_on_the_first_error(monkeypatch):
    def fail(model):
        raise ValueError("second")

    monkeypatch.setattr("hfcompress.train.undo.is_large", lambda model: True)
    monkeypatch.setattr("hfcompress.train.undo.strip_", fail)
    with pytest.raises(TargetError, match="nowhere") as caught:
        compress(PLAIN["bert"](), QuantizeWeightsConfig(targets=["nowhere"]))
    assert any("ValueError: second" in note for note in caught.value.__notes__)
    assert parametrizations.strip_ is not fail


def test_the_end_of_training_is_checked(monkeypatch, tmp_path):
    _breaking(monkeypatch, _not_finite)
    rows = [{"input_ids": torch.randint(5, 99, (6,)), "labels": torch.tensor(i % 3)} for i in range(4)]
    args = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, save_strategy="no")
    trainer = HFCompressTrainer(PLAIN["bert"](), args, recipe=[QuantizeWeightsConfig()], train_dataset=rows)
    with pytest.raises(ModelError, match="logits are not finite"):
        trainer.train()


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_made_for_models_of_every_kind(name):
    model = build(name)
    state = torch.get_rng_state()
    batch, error = synthetic_batch(model.train())
    assert error is None and torch.isfinite(run(model, batch)[0]).all()
    assert model.training and torch.equal(state, torch.get_rng_state())


def test_a_model_for_which_no_batch_can_be_made_is_compressed_and_that_is_said(caplog):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, something):
            return self.layer(something)

    model = Odd()
    with caplog.at_level(logging.WARNING):
        check = ForwardCheck(model, [])
    assert "not checked: whether this Odd still runs" in caplog.text
    check.verify(model, "nothing")
