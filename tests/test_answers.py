"""What models answer with: by name, as tuples, without logits; distillation works with it or refuses at once."""

from __future__ import annotations

import pytest
import torch
from tiny import Examples, calibration, make
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedModel, TrainingArguments

from hfcompress import DistillConfig, HeadsConfig, HFCompressTrainer, MagnitudeConfig, compress
from hfcompress.core.answers import logits_of, named
from hfcompress.core.errors import LifecycleError
from hfcompress.train.teacher import Teacher


def in_tuples(name: str) -> nn.Module:
    model = make(name)
    model.config.return_dict = False
    return model


def run(model: nn.Module, folder, *recipe, name: str = "bert", teacher=None) -> tuple[float, nn.Module]:
    """Train a step and return the loss afterwards, and the model."""
    args = TrainingArguments(
        str(folder), max_steps=1, report_to=[], save_strategy="no", logging_strategy="no", use_cpu=True
    )
    data = Examples(name)
    trainer = HFCompressTrainer(
        model=model, args=args, train_dataset=data, eval_dataset=data, recipe=list(recipe), teacher=teacher
    )
    trainer.train()
    return trainer.evaluate()["eval_loss"], trainer.model


class Tuples(PreTrainedModel):
    """A model of one's own that never answers by name."""

    config_class = BertConfig
    _supports_sdpa = True

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.inner, self.head = BertModel(config), nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.head(self.inner(input_ids, attention_mask)[0][:, 0])
        return (logits,) if labels is None else (nn.functional.cross_entropy(logits, labels), logits)


class Own(nn.Module):
    """A module that transformers does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make("bert")

    def forward(self, input_ids, labels=None):
        return self.inner(input_ids=input_ids, labels=labels).to_tuple()


@pytest.mark.parametrize(
    ("name", "settings"), [("bert", {}), ("gpt2", {"hidden": 1.0}), ("deit", {"hidden": 1.0, "attention": 0.1})]
)
def test_a_model_that_answers_in_tuples_distils_as_any_other(name, settings, tmp_path):
    torch.manual_seed(0)
    expected, _ = run(make(name), tmp_path, DistillConfig(**settings), name=name)
    torch.manual_seed(0)
    found, model = run(in_tuples(name), tmp_path, DistillConfig(**settings), name=name, teacher=in_tuples(name))
    assert found == expected
    assert model.config.return_dict is False, "the user's own setting is kept"


def test_a_teacher_answers_by_name_and_keeps_its_setting():
    teacher = in_tuples("bert")
    answer = Teacher(teacher)({"input_ids": Examples("bert").inputs}, frozenset({"hidden_states"}))
    assert answer["logits"].shape == (24, 3) and len(answer["hidden_states"]) == 4
    assert teacher.config.return_dict is False


def test_importance_is_measured_on_models_that_answer_in_tuples():
    pruned = [
        compress(model, HeadsConfig(remove=0.5), calibration=calibration("bert"))
        for model in (make("bert"), in_tuples("bert"))
    ]
    states = [model.state_dict() for model in pruned]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_models_of_ones_own_that_answer_in_tuples(tmp_path):
    config = make("bert").config
    run(Tuples(config), tmp_path, DistillConfig())
    with pytest.raises(LifecycleError, match="the student, a Tuples, returns no hidden states"):
        run(Tuples(config), tmp_path, DistillConfig(hidden=1.0))
    with pytest.raises(LifecycleError, match="the teacher, a Tuples, returns no hidden states"):
        run(make("bert"), tmp_path, DistillConfig(logits=0, hidden=1.0), teacher=Tuples(config))
    with pytest.raises(LifecycleError, match="the student, a Own, has no config"):
        run(Own(), tmp_path, DistillConfig())
    run(Own(), tmp_path, MagnitudeConfig())  # ended in a traceback when training was done


def test_models_without_logits_are_refused_before_training(tmp_path):
    headless = make("bert").bert
    for model, teacher, whose in ((headless, None, "student"), (make("bert"), headless, "teacher")):
        with pytest.raises(LifecycleError, match=f"the {whose} gives no logits .* last_hidden_state.* this BertModel"):
            run(model, tmp_path, DistillConfig(), teacher=teacher)
    run(make("bert"), tmp_path, DistillConfig(logits=0, hidden=1.0), teacher=headless)
    start = make("bert", seed=1).bert
    before = start.state_dict()["encoder.layer.0.output.dense.weight"].clone()
    _, taught = run(start, tmp_path, DistillConfig(logits=0, task=0, hidden=1.0), teacher=headless)
    assert not torch.equal(taught.encoder.layer[0].output.dense.weight, before), "an encoder learns what is inside"
    other = make("gpt2-lm")
    other.config.num_labels = make("bert").config.num_labels
    with pytest.raises(LifecycleError, match="answer in different shapes"):
        run(make("bert"), tmp_path, DistillConfig(), teacher=other)


def test_names_of_what_has_none():
    loss, logits = torch.tensor(1.0), torch.zeros(2, 3)
    assert named((loss, logits), {"labels": 1}) == {"loss": loss, "logits": logits}
    assert named((logits, [logits])) == {"logits": logits} == named(logits)
    assert logits_of({"start_logits": logits, "end_logits": logits}).shape == (2, 2, 3)
    assert logits_of({"last_hidden_state": logits}) is None
