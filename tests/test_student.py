"""Students: derived from a model with its weights, or checkpoints of their own, in a run and on their own."""

from __future__ import annotations

import json

import pytest
import torch
from project import NAMES, WORDS, text_project
from test_run import hfcompress
from tiny import MODELS, Examples, auto_class, calibration, logits, make, tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    BertTokenizerFast,
    TrainingArguments,
    ViTImageProcessorPil,
)

from hfcompress import DistillConfig, HFCompressTrainer
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import HFCompressError, LifecycleError, RecipeError
from hfcompress.core.families import blocks_of, family_of
from hfcompress.core.student import StudentConfig
from hfcompress.measure.result import read_result
from hfcompress.modules.importance import fisher
from hfcompress.modules.student import derive_student_
from hfcompress.modules.width import stream_axes, stream_norms
from hfcompress.ops.masks import keep_highest
from hfcompress.recipe.load import load_recipe
from hfcompress.train.teacher import processor_difference


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *args: hfcompress(monkeypatch, capsys, *args)


HALF = {"layers": 2, "hidden_size": 0.5, "heads": 2, "ffn": 0.5}


def derived(name: str, settings: dict, data: bool = True) -> torch.nn.Module:
    model = make(name)
    derive_student_(model, StudentConfig(**settings), calibration(name) if data else None)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_student_of_every_family_is_saved_and_loads(name, tmp_path):
    student = derived(name, HALF)
    planned = derived(name, HALF, data=False)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (student, planned)]
    assert shapes[0] == shapes[1], "the plan has other shapes than the run"
    save_checkpoint(student, tmp_path)
    loaded = load_model(tmp_path, auto_class(name))
    assert torch.allclose(logits(loaded, name), logits(student, name), atol=1e-6)
    config = json.loads((tmp_path / "config.json").read_text())
    stock = not name.startswith("dinov2")  # whose feed-forward width is a multiple of the hidden size: it is here, too
    assert ("quantization_config" not in config) or not stock
    assert student.config.num_hidden_layers == 2 and student.config.num_attention_heads == 2


def test_importance_is_measured_on_the_whole_model_and_weights_are_its_own():
    model, student = make("bert"), derived("bert", {"heads": 2, "layers": 2, "choose": [0, 2]})
    blocks = blocks_of(model, family_of(model))
    found = fisher(model, {b.output: 8 for b in blocks}, calibration("bert"), 0)
    for old, new in ((0, 0), (2, 1)):
        block = blocks[old]
        keep = keep_highest(found[block.output].scores, 2).repeat_interleave(8)
        ours = student.get_submodule(block.query.replace(f".{old}.", f".{new}.")).weight
        assert torch.equal(ours, model.get_submodule(block.query).weight[keep])


def test_a_student_that_keeps_everything_answers_the_same():
    student = derived("bert", {"layers": 3, "hidden_size": 32, "heads": 4, "ffn": 64})
    assert torch.allclose(logits(student, "bert"), logits(make("bert"), "bert"), atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "llama"])  # norms with and without a mean; neither has factors per channel
def test_all_principal_directions_are_the_model_itself(name):
    model = make(name)
    for path in stream_norms(model, family_of(model)):
        torch.nn.init.ones_(model.get_submodule(path).weight)
        if getattr(model.get_submodule(path), "bias", None) is not None:
            torch.nn.init.zeros_(model.get_submodule(path).bias)
    before, stream = logits(model, name), model.get_input_embeddings()
    old = next(stream.parameters()).detach().clone()
    derive_student_(model, StudentConfig(hidden_size=model.config.hidden_size, channels="pca"), calibration(name))
    assert torch.allclose(logits(model, name), before, atol=1e-5)
    assert not torch.allclose(next(stream.parameters()), old, atol=1e-2), "nothing was turned"


@pytest.mark.parametrize("name", ["bert", "dinov2", "gpt2"])
def test_a_student_of_principal_directions_has_the_shapes_of_the_plan_and_loads(name, tmp_path):
    settings = {"hidden_size": 0.5, "channels": "pca", "layers": 2}
    student, planned = derived(name, settings), derived(name, settings, data=False)
    assert [p.shape for p in student.parameters()] == [p.shape for p in planned.parameters()]
    save_checkpoint(student, tmp_path)
    loaded = load_model(tmp_path, auto_class(name))
    assert torch.allclose(logits(loaded, name), logits(student, name), atol=1e-6)


def test_principal_directions_keep_what_few_channels_carry():
    """A stream that lives in half of the directions, spread over all channels, needs no more than these."""
    model = make("llama")
    for path in stream_norms(model, family_of(model)):
        torch.nn.init.ones_(model.get_submodule(path).weight)
    width = model.config.hidden_size
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))[0]
    span = turn[:, : width // 2] @ turn[:, : width // 2].T
    for axis in stream_axes(model, family_of(model)):
        weight = model.get_submodule(axis.path)._parameters[axis.name].data
        if weight.ndim == 2:
            weight.copy_((weight.movedim(axis.dim, -1) @ span).movedim(-1, axis.dim))
    before = logits(model, "llama")
    derive_student_(model, StudentConfig(hidden_size=0.5, channels="pca", round_to=1), calibration("llama"))
    assert torch.allclose(logits(model, "llama"), before, atol=1e-4)


@pytest.mark.parametrize(
    ("choose", "kept"),
    [("uniform", [0, 2]), ("every_other", [0, 1]), ("first", [0, 1]), ("last", [1, 2]), ([0, 2], [0, 2])],
)
def test_which_blocks_stay(choose, kept):
    settings = {"choose": choose} if isinstance(choose, list) else {"choose": choose, "layers": 2}
    model, student = make("bert"), derived("bert", settings)
    for new, old in enumerate(kept):
        ours, theirs = (m.bert.encoder.layer[i] for m, i in ((student, new), (model, old)))
        assert torch.equal(ours.output.dense.weight, theirs.output.dense.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 7}, "student.layers: 7 is more than the model's 3"),
        ({"choose": [2, 1]}, r"\[2, 1\] are not numbers of blocks in order; there are 0 to 2"),
        ({"embedding_size": 25}, r"student.embedding_size: 25 saves nothing at .* \(99 x 32\), where at most 24 does"),
        ({"heads": 5}, "student.heads: 5 is more than the model's 4"),
    ],
)
def test_a_student_that_cannot_be_made_is_refused(settings, message):
    with pytest.raises(HFCompressError, match=message):
        derived("bert", settings)


@pytest.mark.parametrize("name", ["bert", "gpt2-lm"])
def test_a_bottleneck_of_embeddings(name, tmp_path):
    student, table = derived(name, {"embedding_size": 8, "layers": 2}), make(name).get_input_embeddings().weight
    narrow = student.get_input_embeddings()
    assert narrow.down.weight.shape == (len(table), 8) and narrow.up.weight.shape == (32, 8)
    ids = torch.cat([batch["input_ids"].flatten() for batch in calibration(name)])
    weights = (torch.bincount(ids, minlength=len(table)) + 1.0).sqrt()[:, None]
    error = torch.linalg.norm(weights * (narrow(torch.arange(len(table))) - table))
    assert float(error.detach()) == pytest.approx(
        float(torch.linalg.svdvals(weights * table.detach())[8:].norm()), rel=1e-3
    )
    if name == "gpt2-lm":
        assert student.lm_head.up.weight is narrow.down.weight
    loaded = load_model(save_checkpoint(student, tmp_path), auto_class(name))
    assert torch.equal(logits(loaded, name), logits(student, name))
    planned = derived(name, {"embedding_size": 8, "layers": 2}, data=False).state_dict()
    assert {k: v.shape for k, v in planned.items()} == {k: v.shape for k, v in student.state_dict().items()}
    with pytest.raises(HFCompressError, match="no plain table of tokens"):
        derived("vit", {"embedding_size": 8})


@pytest.mark.parametrize("name", ["electra", "albert"])
def test_embeddings_narrower_than_the_hidden_state_get_narrower_still(name, tmp_path):
    student = derived(name, {"embedding_size": 0.5, "round_to": 4})
    assert student.config.embedding_size == 8
    save_checkpoint(student, tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.allclose(logits(loaded, name), logits(student, name), atol=1e-6)
    whole, part = (m.get_input_embeddings().weight for m in (make(name), loaded))
    assert all(any(torch.equal(column, other) for other in whole.T) for column in part.T)


RELATIONS = {"distill": {"logits": 0, "task": 0, "relations": {"heads": 2, "layers": "last"}, "hidden": 0.1}}
STAGES = [
    {"name": "inside", "methods": RELATIONS, "train": {"max_steps": 4, "per_device_train_batch_size": 8}},
    {"name": "answers", "methods": {"distill": {}}, "train": {"max_steps": 4, "per_device_train_batch_size": 8}},
]


@pytest.mark.slow
def test_a_run_with_a_derived_student_compares_it_with_the_model(command, tmp_path):
    recipe = text_project(tmp_path, student=HALF, stages=STAGES)
    status, printed, errors = command("plan", recipe)
    assert status == 0, errors
    for word in ("2 of 3 blocks", "2 of 4 heads per block", "loads with transformers alone", "relations"):
        assert word in printed
    status, printed, errors = command("run", recipe, "--output", tmp_path / "out")
    assert status == 0, errors
    result = read_result(tmp_path / "out")
    whole = sum(p.numel() for p in make("bert").parameters())
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model")  # a stock model
    assert result.loads_with == "transformers" and result.baseline.parameters == whole
    assert result.compressed.parameters == sum(p.numel() for p in small.parameters()) < whole / 2
    assert small.config.hidden_size == 16 and small.config.num_hidden_layers == 2
    assert [s.name for s in result.stages] == ["student", "inside", "answers"]
    assert "### Stage 1: student" in (tmp_path / "out" / "model" / "README.md").read_text()
    status, printed, errors = command("run", recipe, "--output", tmp_path / "out", "--resume")
    assert status == 0 and printed.count("done before") == 3, errors
    (tmp_path / "out" / "stages" / "student" / "record.json").write_text("{")  # what it left is not to be trusted
    status, printed, errors = command("run", recipe, "--output", tmp_path / "out", "--resume")
    assert status == 0 and "damaged" in printed and printed.count("done before") == 0, errors


def test_a_run_with_a_checkpoint_as_student(command, tmp_path):
    recipe = text_project(tmp_path, student=str(tmp_path / "small"), stages=STAGES)
    save_checkpoint(derived("bert", {"layers": 1}), tmp_path / "small", BertTokenizerFast(str(tmp_path / "vocab.txt")))
    status, _, errors = command("run", recipe, "--output", tmp_path / "out")
    assert status == 0, errors
    result = read_result(tmp_path / "out")
    assert result.baseline.parameters > result.compressed.parameters
    assert load_model(tmp_path / "out" / "model", "AutoModelForSequenceClassification").config.id2label[0] == NAMES[0]


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_another_tokenizer_is_shown_before_anything_trains(command, tmp_path, whose):
    recipe = text_project(tmp_path, **{whose: str(tmp_path / "other")}, stages=STAGES)
    (tmp_path / "other.txt").write_text("\n".join([*WORDS[:-2], "not", "very", "more"]))
    save_checkpoint(make("bert"), tmp_path / "other", BertTokenizerFast(str(tmp_path / "other.txt")))
    status, _, errors = command("plan", recipe)
    assert status == 2
    assert "13 and 12 tokens; it alone has 'more'; 2 tokens have other ids, such as 'not': 10 and 11" in errors


def test_tokenizers_that_read_differently_are_shown():
    cased = tokenizer("bert")
    assert processor_difference(cased, tokenizer("bert")) == ""
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "A"])}
    both = [BertTokenizerFast(vocab=words, do_lower_case=lower) for lower in (True, False)]
    assert "'A Café, 12.5% BIGGER!' is" in processor_difference(*both)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"layer": 2}, r"student.layer: unknown key.*Did you mean 'layers'"),
        ({}, "student: set layers, hidden_size, heads, ffn, embedding_size or"),
        ({"layers": 2, "choose": [1]}, "leave layers out"),
    ],
)
def test_mistakes_in_a_student_name_their_key(tmp_path, student, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(text_project(tmp_path, student=student, stages=STAGES))


def test_a_student_that_does_not_learn_is_refused(tmp_path):
    with pytest.raises(HFCompressError, match="student: it has to learn"):
        load_recipe(text_project(tmp_path, student=HALF, stages=[{"methods": {"quantize_weights": {}}}]))


def test_the_trainer_shows_another_tokenizer_of_its_teacher(tmp_path):
    words = {word: i for i, word in enumerate([*WORDS, "more"])}
    save_checkpoint(make("bert"), tmp_path / "teacher", BertTokenizerFast(vocab=words))
    common = {"model": make("bert"), "train_dataset": Examples("bert"), "recipe": [DistillConfig()]}
    common["args"] = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    ours = BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})
    with pytest.raises(LifecycleError, match="13 and 12 tokens; it alone has 'more'"):
        HFCompressTrainer(**common, teacher=tmp_path / "teacher", processing_class=ours)
    HFCompressTrainer(**common, teacher=tmp_path / "teacher")  # nothing is known of the model's


def test_image_processors_that_differ_are_shown_by_their_fields():
    ours, theirs = ViTImageProcessorPil(), ViTImageProcessorPil(image_mean=[0.1, 0.2, 0.3])
    assert processor_difference(ours, ViTImageProcessorPil()) == ""
    assert processor_difference(theirs, ours) == "image_mean: [0.1, 0.2, 0.3] and [0.5, 0.5, 0.5]"
    smaller = ViTImageProcessorPil(size={"height": 32, "width": 32})
    assert "size: " in processor_difference(smaller, ours)
    assert processor_difference(ours, tokenizer("bert")) == "a ViTImageProcessorPil and a BertTokenizer"


@pytest.mark.parametrize(("more", "refitted"), [({}, True), ({"layers": 2}, False), ({"hidden_size": 0.5}, False)])
def test_what_reads_heads_is_refitted_only_where_its_input_is_what_it_was(more, refitted):
    model, student = make("bert"), derived("bert", {"heads": 2, **more})
    ours, theirs = (m.bert.encoder.layer[0].attention.output.dense.weight for m in (student, model))
    own = [any(bool(torch.isin(column, other).all()) for other in theirs.T) for column in ours.T]
    assert all(own) != refitted
