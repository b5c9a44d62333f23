"""HFCompressTrainer keeps the meaning of everything in transformers.Trainer, and compresses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import MODELS, Examples, auto_class, logits, make
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertForSequenceClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
    TrainingArguments,
)

from hfcompress import HFCompressMixin, HFCompressTrainer, compress, load_recipe
from hfcompress.checkpoint import load_model
from hfcompress.core.errors import CheckpointError, LifecycleError, RecipeError
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.methods.distill import DistillConfig
from hfcompress.methods.hash_embeddings import HashEmbeddingsConfig
from hfcompress.methods.lora import LoRAConfig
from hfcompress.methods.movement import MovementConfig
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig
from hfcompress.modules.gate import ColumnGate
from hfcompress.modules.parametrizations import wrapped
from hfcompress.train.checkpointing import PlainTrainer
from hfcompress.train.interrupt import SaveOnInterrupt

MOVEMENT = MovementConfig(heads=0.5, ffn=0.5, round_to=4)
JOINT = [MOVEMENT, DistillConfig(hidden=0.5), QuantizeWeightsConfig()]


def accuracy(output):
    return {"accuracy": float((output.predictions.argmax(-1) == output.label_ids).mean())}


def arguments(folder: Path, **more) -> TrainingArguments:
    own = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_strategy": "no"}
    fixed = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no"}
    return TrainingArguments(str(folder), **{**own, **fixed, **more})


def trainer(name: str, folder: Path, recipe=JOINT, cls=HFCompressTrainer, **more):
    common = {"train_dataset": Examples(name), "eval_dataset": Examples(name), "compute_metrics": accuracy}
    model = more.pop("model", None) or make(name)
    return cls(model=model, args=arguments(folder, **more.pop("args", {})), recipe=recipe, **common, **more)


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", MODELS)
def test_train_evaluate_save_load(name, tmp_path):
    """All methods in one stage, on every family."""
    run = trainer(name, tmp_path)
    run.train()
    metrics = run.evaluate()
    assert {"eval_loss", "eval_accuracy"} <= metrics.keys()
    run.save_model(str(tmp_path / "saved"))
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in (tmp_path / "saved").glob("*.safetensors"))
    loaded = load_model(tmp_path / "saved", auto_class(name))
    assert torch.allclose(logits(loaded, name), logits(run.model, name), atol=1e-6)
    assert not wrapped(run.model)
    assert not list((tmp_path / "saved").glob("*.bin")), "the Trainer's pickled arguments went along"
    assert run.compression_report["movement"]["heads_after"] == 6


def test_evaluation_returns_logits_only(tmp_path):
    run = trainer("bert", tmp_path)  # distills hidden states: the model is asked for them in training only
    assert run.predict(Examples("bert")).predictions.shape == (24, 3)


@pytest.mark.parametrize("name", ["bert", "vit", "distilbert"])
def test_gradient_accumulation_equals_the_large_batch(name, tmp_path):
    gradients = []
    for size, accumulate in ((8, 1), (2, 4)):
        args = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulate,
            "max_steps": 1,
            "max_grad_norm": 0.0,
        }
        run = trainer(name, tmp_path, [DistillConfig(logits=0.5, hidden=0.5)], teacher=make(name, seed=1), args=args)
        seen = {}

        class Spy(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, _seen=seen, **kwargs):
                _seen.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

        run.add_callback(Spy())
        run.train()
        gradients.append(seen)
    whole, parts = gradients
    assert whole.keys() == parts.keys()
    for key in whole:
        assert torch.allclose(whole[key], parts[key], rtol=1e-3, atol=1e-5), key


@pytest.mark.parametrize("kind", [PlainTrainer, HFCompressTrainer])
def test_a_loss_of_the_users_own_is_told_how_many_labels_its_batch_has(kind, tmp_path):
    """With any number of accumulation steps the gradient is that of the mean over all of them."""

    def doubled(outputs, labels, num_items_in_batch=None):
        return 2 * F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    found = []
    for func, size, accumulate in ((None, 8, 1), (doubled, 8, 1), (doubled, 2, 4)):
        args = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate, "max_steps": 1}
        recipe = {"recipe": [MOVEMENT]} if kind is HFCompressTrainer else {}
        run = kind(model=make("bert"), args=arguments(tmp_path, **args, max_grad_norm=0.0), compute_loss_func=func,
                   train_dataset=Examples("bert"), eval_dataset=Examples("bert"), **recipe)  # fmt: skip
        seen = {}

        class Spy(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, _seen=seen, **kwargs):
                _seen.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

        run.add_callback(Spy())
        loss = run.evaluate()["eval_loss"]
        run.train()
        found.append((loss, seen))
    (loss, stock), *others = found
    for doubled_loss, gradients in others:
        assert doubled_loss == pytest.approx(2 * loss, rel=1e-4) and gradients.keys() == stock.keys()
        assert all(torch.allclose(2 * stock[n], g, rtol=1e-3, atol=1e-5) for n, g in gradients.items())


def test_scores_have_their_own_learning_rate_and_no_decay(tmp_path):
    run = trainer("bert", tmp_path, [MOVEMENT], args={"weight_decay": 0.1})
    run.create_optimizer()
    scores = {id(m.scores) for m in run.model.modules() if isinstance(m, ColumnGate)}
    groups = [g for g in run.optimizer.param_groups if scores & {id(p) for p in g["params"]}]
    assert len(groups) == 1 and {id(p) for p in groups[0]["params"]} == scores
    assert (groups[0]["lr"], groups[0]["weight_decay"]) == (MOVEMENT.score_learning_rate, 0.0)
    every = [id(p) for g in run.optimizer.param_groups for p in g["params"]]
    assert len(every) == len(set(every))


@pytest.mark.parametrize(
    ("config", "rate"), [(HashEmbeddingsConfig(), 1e-3), (LoRAConfig(r=2, learning_rate=1e-2), 1e-2)]
)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_groups_of_methods_decay_as_the_arguments_say(config, rate, decay, tmp_path):
    """They fell to AdamW's own 0.01."""
    groups = trainer("bert", tmp_path, [config], args={"weight_decay": decay}).create_optimizer().param_groups
    assert groups[2]["params"] and [g["weight_decay"] for g in groups] == [decay, 0.0, decay]
    assert groups[2]["lr"] == rate


def test_an_optimizer_of_the_users_own_takes_what_methods_train(tmp_path):
    model = make("bert")
    mine = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.2)
    run = trainer("bert", tmp_path, [MOVEMENT], model=model, optimizers=(mine, None))
    before, scores = mine.param_groups[0], {id(m.scores) for m in run.model.modules() if isinstance(m, ColumnGate)}
    run.create_optimizer()
    assert [scores == {id(p) for p in g["params"]} for g in mine.param_groups] == [False, True]
    assert mine.param_groups[0] is before and mine.param_groups[1]["weight_decay"] == 0.0


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_the_best_model_is_one_at_full_strength(name, tmp_path):
    """Evaluation is made to look best at first: a checkpoint from before the schedule's end must not win for it."""
    falling = iter([0.9, 0.8, 0.3, 0.5, 0.4, 0.2])
    run = trainer(
        name,
        tmp_path,
        [MOVEMENT],
        args={
            "save_strategy": "steps",
            "save_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "accuracy",
        },
    )
    run.compute_metrics = lambda output: {"accuracy": next(falling)}
    states = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, model=None, **kwargs):
            states[state.global_step] = {k: v.clone() for k, v in model.state_dict().items()}

    run.add_callback(Keep())
    run.train()
    # the schedule ends at 0.7 of 6 steps: steps 5 and 6 count, and 5 is the better of them
    assert run.state.best_global_step == 5
    key = next(k for k in run.model.state_dict() if "norm" in k.lower() and k.endswith("weight"))
    assert torch.equal(run.model.state_dict()[key], states[5][key])
    assert not torch.equal(run.model.state_dict()[key], states[6][key])


@pytest.mark.parametrize("last", [2, 5, 6])
def test_a_training_that_ends_before_its_schedule_says_so(last, tmp_path, caplog):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= last

    run = trainer("bert", tmp_path, [MOVEMENT, QuantizeWeightsConfig()], callbacks=[Stop()])
    run.train()
    told = "training ended after 2 of 6 steps, before movement was at full strength"  # its schedule ends at 0.7
    assert (told in caplog.text) == (last == 2) and caplog.text.count("training ended") == (last == 2)


def test_the_mixin_goes_on_other_trainers(tmp_path):
    class Compressing(HFCompressMixin, Seq2SeqTrainer):
        pass

    args = Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    run = Compressing(model=make("bert"), args=args, recipe=[MOVEMENT], train_dataset=Examples("bert"))
    run.train()
    assert run.compression_report["movement"]["heads_after"] == 6


class Pairs(Dataset):
    """Sources with padding and targets of the same length, as a collator gives them that does not know the model."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids = torch.randint(5, 99, (6,), generator=torch.Generator().manual_seed(index))
        real = torch.arange(6) < 2 + index % 5
        return {"input_ids": ids, "attention_mask": real.long(), "labels": torch.where(real, -100, ids).flip(0)}


def writer(kind: str, seed: int = 0) -> nn.Module:
    """Return a tiny encoder-decoder that writes text, without dropout."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 99, "d_model": 32, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
    if kind == "t5":
        return T5ForConditionalGeneration(T5Config(**sizes, num_layers=2, num_heads=4, d_kv=8, d_ff=64, dropout_rate=0))
    layers = {f"{part}_{key}": size for part in ("encoder", "decoder")
              for key, size in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
    return BartForConditionalGeneration(BartConfig(**sizes, **layers, max_position_embeddings=40, dropout=0))


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoders_are_taught_on_their_targets(kind, tmp_path):
    class Compressing(HFCompressMixin, Seq2SeqTrainer):
        pass

    args = Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    common = {"recipe": [DistillConfig(logits=1.0, temperature=1.0)], "train_dataset": Pairs(), "teacher_cache": True}
    run = Compressing(model=writer(kind), args=args, teacher=writer(kind, seed=1), **common)
    assert "its decoder reads the labels" in run.open_teacher_cache()
    inputs = {key: torch.stack([Pairs()[i][key] for i in range(8)]) for key in Pairs()[0]}
    ours, theirs = (m(**inputs).logits.log_softmax(-1) for m in (run.model, writer(kind, seed=1).eval()))
    rows = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)[inputs["labels"] != -100]
    assert run.compute_loss(run.model.train(), inputs).item() == pytest.approx(rows.mean().item(), rel=1e-4)
    run.train()


def test_model_init_starts_the_stage_anew(tmp_path):
    run = HFCompressTrainer(
        model_init=lambda: make("bert"), args=arguments(tmp_path), recipe=[MOVEMENT], train_dataset=Examples("bert")
    )
    run.train()
    first = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.train()
    second = run.model.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_recipe_with_one_shot_stages_around_the_training(tmp_path):
    values = {
        "model": "unused",
        "task": "text-classification",
        "data": {"path": "unused"},
        "stages": [
            {"methods": {"movement": {"ffn": 0.5, "round_to": 4}}, "train": {"max_steps": 4}},
            {"methods": {"quantize_weights": {}}},
        ],
    }
    recipe = load_recipe(values).recipe
    run = trainer("bert", tmp_path, recipe)
    run.train()
    assert run.compression_report["quantize_weights"]["layers"] == 22
    two = {**values, "stages": [values["stages"][0], values["stages"][0]]}
    with pytest.raises(LifecycleError, match="one stage that trains, this recipe has 2"):
        trainer("bert", tmp_path, load_recipe(two).recipe)


FILE = {
    "model": "unused",
    "task": "text-classification",
    "data": {"path": "unused"},
    "seed": 7,
    "stages": [{"methods": {"distill": {}}, "train": {"max_steps": 1, "report_to": "none"}}],
}


def test_what_a_recipe_says_of_the_training_holds_unless_it_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HFCOMPRESS_CACHE", str(tmp_path / "cache"))
    deep = make("bert", seed=1)
    deep.save_pretrained("big")
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({**FILE, "teacher": "big", "teacher_cache": {"top_k": 3}}))
    run = HFCompressTrainer(make("bert"), recipe=file, train_dataset=Examples("bert"))
    assert torch.equal(logits(run.teacher.model, "bert"), logits(deep, "bert"))
    assert (run.args.seed, run.args.max_steps, run.teacher_cache.top_k) == (7, 1, 3)
    given = {"args": arguments(tmp_path, seed=3), "teacher": make("bert", seed=2), "teacher_cache": False}
    run = HFCompressTrainer(make("bert"), recipe=file, train_dataset=Examples("bert"), **given)
    assert (run.teacher.model, run.args.seed, run.teacher_cache) == (given["teacher"], 3, None)


@pytest.mark.parametrize(("key", "value"), [("student", {"layers": 1}), ("finetune", {})])
def test_a_recipe_that_makes_another_model_first_is_refused(key, value):
    recipe = load_recipe({**FILE, key: value}).recipe
    for act in (lambda: HFCompressTrainer(make("bert"), recipe=recipe), lambda: compress(make("bert"), recipe)):
        with pytest.raises(LifecycleError, match=rf"the recipe's '{key}' is for .* and leave '{key}' out"):
            act()


def test_compress_takes_the_seed_of_a_recipe(monkeypatch):
    seen = []
    prepare = Lifecycle.prepare
    monkeypatch.setattr(Lifecycle, "prepare", lambda *a, seed, **more: (seen.append(seed), prepare(*a, **more))[1])
    recipe = load_recipe({**FILE, "stages": [{"methods": {"quantize_weights": {}}}]}).recipe
    for given, more in ((recipe, {}), (recipe, {"seed": 3}), (QuantizeWeightsConfig(), {})):
        compress(make("bert"), given, **more)
    assert seen == [7, 3, 0]


def test_training_a_finished_trainer_again_is_an_error(tmp_path):
    run = trainer("bert", tmp_path)
    run.train()
    with pytest.raises(LifecycleError, match="compressed already"):
        run.train()


def test_resuming_with_another_recipe_is_an_error(tmp_path):
    run = trainer("bert", tmp_path, [MOVEMENT], args={"save_strategy": "steps", "save_steps": 3})
    run.train()
    other = trainer("bert", tmp_path, [QuantizeWeightsConfig()])
    with pytest.raises(CheckpointError, match="resume with the recipe it came from"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_finished_model_is_no_checkpoint_to_resume_from(tmp_path):
    run = trainer("bert", tmp_path)
    run.train()
    run.save_model(str(tmp_path / "saved"))
    with pytest.raises(CheckpointError, match=r"no checkpoint of a training: it has no trainer_state.json"):
        trainer("bert", tmp_path).train(resume_from_checkpoint=str(tmp_path / "saved"))


class Custom(BertForSequenceClassification):
    """A class of the user's own, which transformers does not know."""


def test_a_model_class_of_the_users_own_resumes_and_picks_its_best(tmp_path):
    every = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    args = {**every, "load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    run = trainer("bert", tmp_path, [MOVEMENT], model=Custom(make("bert").config), args=args)
    run.train()
    assert run.compression_report["movement"]["heads_after"] == 6
    again = trainer("bert", tmp_path, [MOVEMENT], model=Custom(make("bert").config), args=args)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.global_step == 6


def test_compress_refuses_what_trains_and_what_is_empty():
    with pytest.raises(LifecycleError, match="movement acts while training"):
        compress(make("bert"), MOVEMENT)
    with pytest.raises(RecipeError, match="the recipe is empty"):
        compress(make("bert"), [])
    with pytest.raises(RecipeError, match="each method once"):
        compress(make("bert"), [QuantizeWeightsConfig(), QuantizeWeightsConfig()])


def test_a_teacher_with_other_labels_is_an_error(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_labels=7)
    teacher = BertForSequenceClassification(config)
    with pytest.raises(LifecycleError, match="different numbers of labels: 7 and 3"):
        trainer("bert", tmp_path, [DistillConfig()], teacher=teacher)


def test_ctrl_c_saves_and_a_resumed_run_ends_the_same(tmp_path):
    """SIGINT after step 2: a checkpoint is written, and resuming from it gives the uninterrupted run's model."""
    import signal

    class Press(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                signal.raise_signal(signal.SIGINT)

    whole = trainer("bert", tmp_path / "whole")
    whole.train()
    stopped = trainer("bert", tmp_path / "stopped")
    with SaveOnInterrupt() as callback:
        stopped.add_callback(Press())
        stopped.add_callback(callback)
        with pytest.raises(KeyboardInterrupt):
            stopped.train()
    resumed = trainer("bert", tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-3"))
    ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


DISTRIBUTED = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
from test_trainer import AROUND, JOINT, trainer
from pathlib import Path

run = trainer("bert", Path({folder!r}), {recipe})
run.train()
metrics = run.evaluate()
run.save_model({folder!r} + "/saved")
mine = torch.cat([t.float().flatten() for t in run.model.state_dict().values()])
others = run.accelerator.gather(mine[None])
assert len(others) == 2 and torch.equal(others[0], others[1]), "the ranks ended with different models"
if run.is_world_process_zero():
    print("ranks agree", metrics["eval_accuracy"])
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # gloo's threads may abort an interpreter that shuts down around them
"""


STAGES = [
    {"methods": {"heads": {"remove": 0.5}, "ffn": {"remove": 0.5, "round_to": 4}}},
    {"methods": {"qat": {"start": 0.3, "targets": ["re:.*intermediate.*"]}}, "train": {"max_steps": 6}},
    {"methods": {"wanda": {"targets": ["re:.*attention.*"]}}},
]
AROUND = load_recipe({"model": "x", "task": "text-classification", "data": {"path": "x"}, "stages": STAGES}).recipe


@pytest.mark.parametrize("recipe", [pytest.param("JOINT", marks=pytest.mark.slow), "AROUND"])
def test_two_processes_end_with_the_same_model(recipe, tmp_path):
    """Also where stages before and after the training cut by what each measures on its batches."""
    script = tmp_path / "script.py"
    script.write_text(DISTRIBUTED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run"), recipe=recipe))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ranks agree" in done.stdout
    load_model(tmp_path / "run" / "saved", auto_class("bert"))
