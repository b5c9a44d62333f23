"""Distillation: every part of the loss against a plain count, layer maps, projections, and what must be refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import Examples, auto_class, batch, calibration, make
from torch import nn
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    DeiTForImageClassificationWithTeacher,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
)

from hfcompress import DistillConfig, HFCompressTrainer, WidthConfig, compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import LifecycleError, RecipeError
from hfcompress.core.families import blocks_of, family_of
from hfcompress.core.layer_map import layer_pairs
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.registry import create
from hfcompress.core.schedule import Weighted
from hfcompress.modules import capture
from hfcompress.modules.capture import Capture
from hfcompress.modules.plain_names import COMPANIONS
from hfcompress.ops.losses import hard_cross_entropy, hidden_cosine, logits_mse, nearest_pairs
from hfcompress.ops.relations import (
    activation_map_mse,
    attention_kl,
    attention_mse,
    attention_scores_mse,
    relation_kl,
)
from hfcompress.train.checkpointing import PlainTrainer
from hfcompress.train.teacher import Teacher, output_flags

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])


def bert(**config) -> torch.nn.Module:
    """Return a tiny BERT of another shape than the one of `tiny`."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 32} | config
    known = {"vocab_size": 99, "max_position_embeddings": 40, "num_labels": 3, "initializer_range": 0.2}
    return BertForSequenceClassification(BertConfig(**{**known, **sizes})).eval()


def loss_of(student, teacher, settings, inputs=None, fraction=0.0) -> tuple[float, dict[str, float], Lifecycle]:
    """Return what one step of distillation adds up to, its parts, and the life cycle that is still prepared."""
    lifecycle = Lifecycle([create("distill", settings)], training=True)
    lifecycle.prepare(student, teacher=teacher)
    lifecycle.step(student, fraction)
    student.train()
    inputs = inputs or batch("bert")
    ours = student(**inputs, **output_flags(lifecycle.wants))
    theirs = Teacher(teacher)(inputs, lifecycle.wants)
    loss = lifecycle.loss(torch.zeros(()), inputs, ours, theirs)
    loss.backward()
    return float(loss.detach()), lifecycle.log(), lifecycle


def trainer(folder, recipe, student, teacher, **args) -> HFCompressTrainer:
    common = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 2}
    arguments = TrainingArguments(
        str(folder), **common | args, save_steps=2, use_cpu=True, report_to=[], disable_tqdm=True
    )
    return HFCompressTrainer(
        model=student, args=arguments, train_dataset=Examples("bert"), recipe=recipe, teacher=teacher
    )


# --- losses ---------------------------------------------------------------------------------------------------------


def relations(left, right, heads, mask):
    """Return softmax(A B^T / sqrt(d)) by the formula, one head and one text at a time."""
    found = []
    for a, b, real in zip(left, right, mask, strict=True):
        size = a.shape[-1] // heads
        for i in range(heads):
            scores = a[:, i * size : (i + 1) * size] @ b[:, i * size : (i + 1) * size].T / size**0.5
            found.append(scores.masked_fill(real == 0, -1e9).softmax(-1)[real == 1])
    return found


def test_relations_are_the_divergence_of_the_papers_formula():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 4, 6), torch.randn(2, 4, 12)
    pairs = zip(relations(theirs, theirs, 3, MASK), relations(ours, ours, 3, MASK), strict=True)
    rows = torch.cat([(t * (t / s).log()).nan_to_num().sum(-1) for t, s in pairs])
    found = relation_kl((ours, ours), (theirs, theirs), 3, MASK)
    assert found == pytest.approx(float(rows.mean()), rel=1e-5)
    assert relation_kl((theirs, theirs), (theirs, theirs), 4, MASK) == pytest.approx(0, abs=1e-6)


def test_attention_losses_do_not_see_dropout_or_padding():
    torch.manual_seed(0)
    ours, theirs = (torch.randn(2, 3, 4, 4).masked_fill(MASK[:, None, None] == 0, -1e9) for _ in range(2))
    s, t = ours.softmax(-1), theirs.softmax(-1)
    rows = (t * (t / s).log()).nan_to_num().sum(-1).movedim(1, -1)[MASK == 1]
    assert attention_kl(s, t, MASK) == pytest.approx(float(rows.mean()), rel=1e-5)
    for loss in (attention_kl, attention_mse, attention_scores_mse):
        assert loss(t, t, MASK) == pytest.approx(0, abs=1e-6)
        assert float(loss(s, t, MASK)) > 0
    # a constant per row changes the scores, not the attention
    shifted = (theirs + torch.randn(2, 3, 4, 1)).softmax(-1)
    assert attention_scores_mse(shifted, t, MASK) == pytest.approx(0, abs=1e-5)
    dropped = t * (torch.rand_like(t) > 0.3)
    assert attention_scores_mse(dropped / 0.7, t, MASK) == pytest.approx(0, abs=1e-5)


def test_the_other_losses_by_their_formulas():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    cosines = F.cosine_similarity(ours, theirs, dim=-1)[MASK == 1]
    assert hidden_cosine(ours, theirs, MASK) == pytest.approx(float(1 - cosines.mean()), rel=1e-5)
    assert logits_mse(ours, theirs, MASK) == pytest.approx(float((ours - theirs)[MASK == 1].square().mean()), rel=1e-5)
    wanted = F.cross_entropy(ours[MASK == 1], theirs[MASK == 1].argmax(-1))
    assert hard_cross_entropy(ours, theirs, MASK) == pytest.approx(float(wanted), rel=1e-5)
    maps = [F.normalize(x.square().sum(-1), dim=1) for x in (ours, theirs)]
    assert activation_map_mse(ours, theirs, 2.0) == pytest.approx(float((maps[0] - maps[1]).square().sum(1).mean()))
    images = ours.transpose(1, 2).unflatten(-1, (2, 2))
    assert activation_map_mse(images, theirs, 2.0) == pytest.approx(float(activation_map_mse(ours, theirs, 2.0)))


def test_several_labels_are_taught_each_by_itself():
    ours, theirs = (bert(**STILL, problem_type="multi_label_classification") for _ in range(2))
    theirs.classifier.bias.data += 4.0  # a softmax would not see it
    inputs = batch("bert")
    _, parts, _ = loss_of(ours, theirs, {"temperature": 2.0, "hard": 0.5}, inputs)
    s, t = (m(**inputs).logits.detach() for m in (ours, theirs))
    p, q = (torch.stack([(x / 2).sigmoid(), 1 - (x / 2).sigmoid()]) for x in (t, s))
    assert parts["distill/logits"] == pytest.approx(float(4 * (p * (p / q).log()).sum(0).mean()), rel=1e-4)
    wanted = F.binary_cross_entropy(s.sigmoid(), (t > 0).float())
    assert parts["distill/hard"] == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("config", [{"num_labels": 1}, {"problem_type": "regression"}], ids=str)
def test_numbers_are_taught_by_their_squared_error(config):
    ours, theirs = bert(**STILL, **config), bert(**STILL, **config)
    theirs.classifier.bias.data += 3.0
    assert loss_of(ours, theirs, {})[1]["distill/logits"] == pytest.approx(9.0, rel=1e-4)
    with pytest.raises(LifecycleError, match=r"distill.hard: a model that answers with numbers"):
        loss_of(ours, theirs, {"hard": 0.5})


def test_where_an_answer_begins_and_ends_is_taught():
    """Question answering has two rows of logits over the tokens, each a choice of one."""
    config = bert(**STILL, num_labels=2).config
    ours, theirs = (BertForQuestionAnswering(config).eval() for _ in range(2))
    with torch.no_grad():
        for model in (ours, theirs):
            model.qa_outputs.weight *= 30  # the tokens of a tiny model's text are much alike
        given = [m(**batch("bert")) for m in (ours, theirs)]
    heads = [[getattr(outputs, f"{end}_logits") for outputs in given] for end in ("start", "end")]
    loss, parts, lifecycle = loss_of(ours, theirs, {"logits": {"weight": 0.5}, "hard": 0.5, "temperature": 1.0})
    soft = [F.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="batchmean", log_target=True) for s, t in heads]
    hard = [F.cross_entropy(s, t.argmax(-1)) for s, t in heads]
    assert parts["distill/logits"] == pytest.approx(float(sum(soft)) / 2, rel=1e-4) and float(min(soft)) > 0.01
    assert loss == pytest.approx(float(sum(soft) + sum(hard)) / 4, rel=1e-4)
    lifecycle.finalize(ours)
    assert loss_of(ours, theirs, {"logits": 0, "hidden": 1})[0] > 0


def test_padding_of_multiple_choice_is_not_taught():
    """Its masks are (batch, choices, length), its rows in the model one for each choice."""
    config = bert(**STILL).config
    ours, theirs = BertForMultipleChoice(config), BertForMultipleChoice(config)
    ids = torch.randint(3, 99, (2, 2, 6), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([ids, torch.full((2, 2, 3), 77)], -1)
    mask = torch.tensor([1] * 6 + [0] * 3).expand(2, 2, 9)
    found = []
    for inputs in ({"input_ids": ids}, {"input_ids": padded, "attention_mask": mask}):
        loss, _, lifecycle = loss_of(ours, theirs, {"logits": 0, "hidden": 1, "relations": 1}, inputs)
        lifecycle.finalize(ours)
        found.append(loss)
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_model_without_logits_can_be_taught_inside_only():
    config = bert(**STILL).config
    ours, theirs = BertModel(config), BertModel(config)
    with pytest.raises(LifecycleError, match=r"the student gives no logits to compare, only last_hidden_state"):
        loss_of(ours, theirs, {})
    assert loss_of(BertModel(config), theirs, {"logits": 0, "hidden": 1})[0] > 0


# --- layer maps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [
        ("uniform", [(0, 1), (1, 3), (2, 5)]),
        ("last", [(2, 5)]),
        ([0, 2, -1], [(0, 0), (1, 2), (2, 5)]),
        ({-1: 4, 0: 1}, [(2, 4), (0, 1)]),
    ],
)
def test_layer_maps(layers, pairs):
    assert layer_pairs(layers, 3, 6, "x") == pairs


@pytest.mark.parametrize(
    ("layers", "message"),
    [([1, 2], "names 2 layers of the teacher, the student has 3"), ({0: 6}, "the teacher has no layer 6")],
)
def test_layers_that_are_not_there_are_named(layers, message):
    with pytest.raises(LifecycleError, match=message):
        loss_of(make("bert"), bert(), {"relations": {"layers": layers, "heads": 2}})


def test_nearest_meets_the_layer_that_is_most_like():
    teacher = list(torch.randn(5, 2, 4, 6))
    student = [teacher[3] + 0.01, teacher[1] - 0.01]
    assert nearest_pairs(student, teacher) == [(0, 3), (1, 1)]
    assert nearest_pairs(student, teacher, MASK) == [(0, 3), (1, 1)]


# --- inside the models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "gpt2", "distilbert", "vit"])
def test_queries_and_keys_give_the_attention_the_model_returns(name):
    model = make(name)
    family = family_of(model)
    watch = Capture(model, blocks_of(model, family), always=True)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**batch(name), output_attentions=True).attentions
    layers = watch.take()
    assert len(layers) == len(maps) == 3
    for layer, wanted in zip(layers, maps, strict=True):
        query, key = (layer[kind].unflatten(-1, (4, -1)).transpose(1, 2) for kind in ("query", "key"))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if name == "gpt2":
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
        assert torch.allclose(scores.softmax(-1), wanted, atol=1e-5)
    watch.remove()
    model(**batch(name))
    with pytest.raises(LifecycleError, match="its projections gave none"):
        watch.take()


def test_models_of_other_width_heads_and_depth_meet_in_relation_heads():
    settings = {"logits": 0, "task": 0, "relations": {"heads": 2, "layers": "last"}}
    loss, parts, lifecycle = loss_of(make("bert"), bert(), settings)
    assert set(parts) == {"distill/relations"}
    assert loss == pytest.approx(parts["distill/relations"])
    lifecycle.finalize(make("bert"))
    with pytest.raises(
        LifecycleError, match=r"relations.heads: widths of 32, 48 can't be cut into 6 heads; set one of 1, 2, 4"
    ):
        loss_of(make("bert"), bert(), {"relations": 1})


def test_queries_that_share_a_key_do_not_meet_it():
    config = LlamaConfig(**SMALL, vocab_size=99, num_key_value_heads=2)
    models = [LlamaForCausalLM(config) for _ in range(2)]
    with pytest.raises(
        LifecycleError, match=r"relations.of: heads share their keys .* 32 .* meet 16 .* leave query_key"
    ):
        loss_of(*models, {"relations": {"of": ["value", "query_key"]}})
    assert loss_of(*models, {"relations": 1})[1]["distill/relations"] > 0


def test_a_model_taught_by_itself_has_nothing_to_learn():
    settings = {
        "logits": 1,
        "hidden": 1,
        "cosine": 1,
        "attention": {"loss": "kl"},
        "relations": {"of": ["query_key", "value"]},
    }
    loss, parts, _ = loss_of(make("bert"), make("bert"), settings)
    assert loss == pytest.approx(0, abs=1e-4)
    assert len(parts) == 5


def test_attention_is_eager_only_while_training():
    student, teacher = make("bert"), make("bert", seed=1)
    own = student.config._attn_implementation
    assert own != "eager"
    _, _, lifecycle = loss_of(student, teacher, {"attention": 1})
    assert student.config._attn_implementation == teacher.config._attn_implementation == "eager"
    student.eval()(**batch("bert"))
    assert student.config._attn_implementation == own
    student.train()(**batch("bert"))
    lifecycle.finalize(student)
    assert student.config._attn_implementation == teacher.config._attn_implementation == own


def test_a_model_that_returns_no_attention_is_an_error(monkeypatch):
    monkeypatch.setattr(capture.AttentionMaps, "IMPLEMENTATION", "sdpa")
    with pytest.raises(LifecycleError, match=r"distill.attention: the student returns no attentions"):
        loss_of(make("bert"), make("bert", seed=1), {"attention": 1})


def test_attention_of_other_numbers_of_heads_is_refused_before_training_or_averaged():
    told = r"has 6 heads, layer 0 of the model 4; set `attention: \{weight: 0\.1, heads: mean\}`"
    with pytest.raises(LifecycleError, match=told):
        loss_of(make("bert"), bert(), {"attention": 1})
    assert loss_of(make("bert"), bert(), {"attention": {"heads": "mean"}})[1]["distill/attention"] > 0


# --- projections ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["shared", "each"])
def test_projections_train_resume_to_the_bit_and_leave(tmp_path, projection):
    recipe = [DistillConfig(hidden=1.0, cosine=0.5, projection=projection)]
    whole = trainer(tmp_path, recipe, make("bert"), bert())
    names = [name for name, _ in whole.model.named_parameters() if name.startswith(COMPANIONS)]
    assert len(names) == 2 * (1 if projection == "shared" else 4)
    before = {name: whole.model.get_parameter(name).clone() for name in names}
    optimizer = whole.create_optimizer()
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all(id(whole.model.get_parameter(name)) in trained for name in names)
    seen = {name: whole.model.get_parameter(name) for name in names}
    whole.train()
    assert all(not torch.equal(seen[name], before[name]) for name in names)
    assert not hasattr(whole.model, COMPANIONS)
    resumed = trainer(tmp_path, recipe, make("bert"), bert())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
    assert ours.keys() == theirs.keys() == make("bert").state_dict().keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_projection_starts_where_the_two_tables_of_tokens_meet():
    student, teacher = make("bert"), bert()
    turn = torch.randn(32, 48)
    teacher.bert.embeddings.word_embeddings.weight.data = student.bert.embeddings.word_embeddings.weight @ turn + 0.5
    lifecycle = loss_of(student, teacher, {"hidden": 1})[2]
    (projection,) = getattr(student, COMPANIONS)["distill"]
    assert torch.allclose(projection.weight, turn.T, atol=1e-4) and torch.allclose(
        projection.bias, torch.full((48,), 0.5), atol=1e-4
    )
    lifecycle.finalize(student)


# --- weights and the log --------------------------------------------------------------------------------------------


def test_a_weight_follows_its_schedule():
    part = Weighted(weight=0.0, initial=2.0, schedule={"shape": "linear", "start": 0.2, "end": 0.6})
    assert [part.at(x) for x in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([2.0, 2.0, 1.0, 0.0, 0.0])
    settings = {"relations": {"weight": 0, "initial": 1, "schedule": {"shape": "linear", "start": 0, "end": 0.5}}}
    assert "distill/relations" in loss_of(make("bert"), make("bert", 1), settings)[1]
    assert "distill/relations" not in loss_of(make("bert"), make("bert", 1), settings, fraction=0.5)[1]
    later = {"cosine": {"schedule": {"shape": "linear", "start": 0.5, "end": 0.8}}}
    early, late = (loss_of(make("bert"), make("bert", 1), later, fraction=at)[2] for at in (0.4, 0.6))
    assert not early.wants, "hidden states are not computed before they count"
    assert late.wants == early.ever_wants == {"hidden_states"}


def test_the_log_shows_every_part(tmp_path):
    run = trainer(tmp_path, [DistillConfig(hidden=1.0, relations=0.5)], make("bert"), make("bert", 1))
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logged) == 2
    for entry in logged:
        assert {"distill/logits", "distill/hidden", "distill/relations"} <= set(entry)
    json.dumps(logged)


# --- what must be refused -------------------------------------------------------------------------------------------


def test_labels_that_differ_are_shown():
    student, teacher = make("bert"), make("bert", 1)
    student.config.id2label = {0: "bad", 1: "good", 2: "so-so"}
    assert loss_of(student, teacher, {})[0] > 0  # those without names may mean the same
    teacher.config.id2label = {0: "good", 1: "bad", 2: "so-so"}
    with pytest.raises(LifecycleError, match="the same names in another order; number 0 is 'good' and 'bad'"):
        loss_of(student, teacher, {})
    teacher.config.id2label = {0: "bad", 1: "good", 2: "neutral"}
    with pytest.raises(LifecycleError, match="only the teacher has 'neutral'; only the model has 'so-so'"):
        loss_of(student, teacher, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logits": 0}, "teacher would not be heard"),
        ({"relations": {"weigth": 1}}, r"methods.distill.relations.weigth: unknown key.*Did you mean 'weight'"),
        ({"relations": {"of": ["queries"]}}, r"methods.distill.relations.of.0: "),
        ({"hidden": "much"}, r"methods.distill.hidden: input should be a valid number"),
        ({"hidden": {"initial": 1}}, "it needs a schedule"),
    ],
)
def test_mistakes_in_the_settings_name_their_key(settings, message):
    with pytest.raises(RecipeError, match=message):
        create("distill", settings)


def test_activation_checkpointing_gives_the_same_losses_and_gradients():
    settings = {"attention": 1, "relations": {"layers": "uniform"}, "hidden": 1}
    found = []
    for checkpointing in (False, True):
        student = make("bert")
        if checkpointing:
            student.gradient_checkpointing_enable()
        loss, _, lifecycle = loss_of(student, make("bert", 1), settings)
        gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
        lifecycle.finalize(student)
        found.append((loss, gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert found[0][1].keys() == found[1][1].keys()
    assert all(torch.allclose(found[0][1][name], found[1][1][name], atol=1e-6) for name in found[0][1])


def test_a_student_of_fewer_channels_learns_from_hidden_states(tmp_path):
    student = compress(make("bert"), WidthConfig(keep=0.75), calibration=calibration("bert"))
    assert student.bert.encoder.layer[0].output.dense.out_features == 24
    run = trainer(
        tmp_path, [DistillConfig(hidden=1.0, relations=1.0)], student, make("bert"), max_steps=8, learning_rate=1e-3
    )
    run.train()
    losses = [entry["distill/hidden"] for entry in run.state.log_history if "distill/hidden" in entry]
    assert losses[-1] < losses[0]
    save_checkpoint(run.model, tmp_path / "saved")
    loaded = load_model(tmp_path / "saved", "AutoModelForSequenceClassification")
    assert loaded.state_dict().keys() == make("bert").state_dict().keys()


DISTRIBUTED = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
from test_distill import bert, trainer
from tiny import make
from hfcompress import DistillConfig

fades = {{"weight": 0, "initial": 1, "schedule": {{"shape": "linear", "start": 0, "end": 0.5}}}}
attention, relations = {{"heads": "mean"}}, {{"heads": 2}}
recipe = DistillConfig(hidden=fades, cosine=0.5, relations=relations, attention=attention, projection="each")
run = trainer({folder!r}, [recipe], make("bert"), bert(), save_strategy="no", per_device_train_batch_size=2)
run.train()
own = torch.cat([p.detach().flatten() for p in run.model.parameters()])
others = [torch.empty_like(own) for _ in range(2)]
torch.distributed.all_gather(others, own)
assert torch.equal(others[0], others[1]), "the ranks ended with different models"
if run.is_world_process_zero():
    print("ranks agree")
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # gloo's threads may abort an interpreter that shuts down around them
"""


@pytest.mark.slow
def test_two_processes_train_projections_and_end_with_the_same_model(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DISTRIBUTED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ranks agree" in done.stdout


# --- images ---------------------------------------------------------------------------------------------------------

HARD = {"logits": 0.0, "hard": 0.5, "task": 0.5}


def two_headed(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    small = make("deit").config
    return DeiTForImageClassificationWithTeacher(small).eval()


def test_of_two_heads_one_learns_from_labels_and_the_other_from_the_teacher():
    """DeiT, equation 3: L = CE(class head, labels) / 2 + CE(distillation head, the teacher's decisions) / 2."""
    student, teacher, inputs = two_headed(), make("vit", seed=1), batch("deit")
    loss, parts, _ = loss_of(student, teacher, HARD, inputs)
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(student(**inputs).distillation_logits, teacher(**inputs).logits.argmax(-1))
    assert parts["distill/hard"] == pytest.approx(float(wanted), abs=1e-5)
    assert loss == pytest.approx(0.5 * float(wanted), abs=1e-5)
    assert student.distillation_classifier.weight.grad.abs().sum() > 0 and student.cls_classifier.weight.grad is None


def test_a_two_headed_model_trains_is_evaluated_and_loads(tmp_path):
    student, rows = two_headed(), Examples("deit")
    args = TrainingArguments(str(tmp_path / "t"), max_steps=4, learning_rate=1e-2, use_cpu=True, report_to=[])
    recipe = create("distill", HARD).config
    made = HFCompressTrainer(
        model=student, args=args, train_dataset=rows, eval_dataset=rows, recipe=recipe, teacher=make("vit", seed=1)
    )
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    first = made.evaluate()["eval_loss"]
    made.train()
    assert made.evaluate()["eval_loss"] < first  # against the labels, by the class head
    assert all(not torch.equal(before[f"{head}_classifier.weight"], getattr(student, f"{head}_classifier").weight)
               for head in ("cls", "distillation"))  # fmt: skip
    plain = PlainTrainer(model=two_headed(), args=args, train_dataset=rows)
    plain.train()  # without a teacher both heads learn from the labels
    assert not torch.equal(before["distillation_classifier.weight"], plain.model.distillation_classifier.weight)
    loaded = load_model(save_checkpoint(student, tmp_path / "saved"), auto_class("deit"))
    assert type(loaded) is type(student)
    assert torch.allclose(loaded(**batch("deit")).logits, student.eval()(**batch("deit")).logits, atol=1e-6)


INSIDE = {"logits": 0.5, "hidden": 1, "cosine": 0.5, "maps": 0.5, "attention": 1, "relations": {"of": ["query_key"]}}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("vit", "vit"),
        ("deit", "deit"),
        ("beit", "beit"),
        ("dinov2", "dinov2"),
        ("dinov2", "vit"),
        ("deit", "two-headed"),
    ],
)
def test_image_models_learn_from_hidden_states_and_attention(name, other):
    teacher = two_headed(seed=1) if other == "two-headed" else make(other, seed=1)
    inputs = batch(name)
    loss, parts, lifecycle = loss_of(make(name), teacher, INSIDE, inputs)
    assert set(parts) == {f"distill/{part}" for part in INSIDE} and all(value > 0 for value in parts.values())
    lifecycle.finalize(make(name))
    same, parts, _ = loss_of(make(name), make(name), {**INSIDE, "logits": 0, "hard": 0}, inputs)
    assert same == pytest.approx(0, abs=1e-4) and loss > same


def test_image_models_of_other_tokens_are_told_apart():
    with pytest.raises(LifecycleError, match="the student has 18 tokens here, the teacher 17"):
        loss_of(make("deit"), make("vit", seed=1), {"hidden": 1}, batch("deit"))
    with pytest.raises(LifecycleError, match="tokens here"):
        loss_of(make("deit"), make("vit", seed=1), {"attention": 1}, batch("deit"))
