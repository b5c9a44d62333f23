"""Causal language models: data, metrics, a whole run, distillation, export, and models too large to hold twice."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from causal import CAUSAL, WORDS, causal_project, make_causal, sentences, tokenizer
from datasets import Dataset
from safetensors.torch import save_file
from test_measure import result
from test_run import hfcompress

from hfcompress import DistillConfig, QuantizeWeightsConfig, compress
from hfcompress.checkpoint import load_model, release_, save_checkpoint
from hfcompress.checkpoint import memory as checkpoint_memory
from hfcompress.core.errors import DataError, RecipeError
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.metric import Metric
from hfcompress.core.progress import listening, track
from hfcompress.core.registry import create
from hfcompress.export.agreement import errors
from hfcompress.export.inputs import example_inputs, spec_of
from hfcompress.export.onnx import export_onnx
from hfcompress.export.runtime import open_onnx
from hfcompress.measure.findings import findings
from hfcompress.measure.flops import count_flops
from hfcompress.measure.quality import EvaluationSet, difference, quality
from hfcompress.measure.require import check, parse_requirement
from hfcompress.measure.result import Difference, Quality, read_result
from hfcompress.measure.size import count_parameters
from hfcompress.measure.statistics import paired_bootstrap
from hfcompress.modules.parametrizations import wrapped
from hfcompress.ops.losses import soft_cross_entropy
from hfcompress.ops.reductions import IGNORED, next_token, unanswered
from hfcompress.publish import rows
from hfcompress.recipe.data import Data
from hfcompress.recipe.load import load_recipe
from hfcompress.recipe.plan import make_plan
from hfcompress.run import execute
from hfcompress.run.setup import open_recipe
from hfcompress.run.training import selecting
from hfcompress.train.tasks import auto_class_for, get_task
from hfcompress.train.trainer import load_teacher

TASK, AUTO = get_task("text-generation"), "AutoModelForCausalLM"


def encoded(size: int, length: int | None) -> Dataset:
    return TASK.encode(Dataset.from_dict({"text": sentences(size)}), tokenizer(), Data(path="x", max_length=length))


def batch(rows: int = 3, length: int = 9) -> dict[str, torch.Tensor]:
    ids = torch.randint(len(WORDS), (rows, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids.clone()}


@torch.no_grad()
def predicted(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    logits = model(input_ids=inputs["input_ids"]).logits.numpy()
    return next_token(logits, {name: value.numpy() for name, value in inputs.items()})


# --- data -----------------------------------------------------------------------------------------------------------


def test_texts_are_joined_and_cut_into_full_blocks():
    whole = [i for text in sentences(10) for i in tokenizer()(text)["input_ids"]]
    blocks = encoded(10, 8)
    assert len(blocks) == len(whole) // 8 and len(whole) % 8
    assert np.concatenate([b["input_ids"] for b in blocks]).tolist() == whole[: len(blocks) * 8]
    collated = TASK.collator(tokenizer())([blocks[0], blocks[1]])
    assert collated["input_ids"].shape == (2, 8) and collated["input_ids"].dtype == torch.int64
    assert torch.equal(collated["labels"], collated["input_ids"])


def test_blocks_follow_the_model_and_too_little_text_is_refused():
    config = make_causal("gpt2").config
    path = Data(path="x", max_length=49)

    class Known:
        @staticmethod
        def from_pretrained(*_: object, **__: object) -> Any:
            return tokenizer()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hfcompress.train.tasks.text.AutoTokenizer", Known)
        known = TASK.load_processor("x", config, path)
    with pytest.raises(RecipeError, match=r"data.max_length: the model takes 48 tokens at most \(got 49\)"):
        TASK.encode(Dataset.from_dict({"text": sentences(60)}), known, path)
    assert len(TASK.encode(Dataset.from_dict({"text": sentences(60)}), known, Data(path="x"))[0]["input_ids"]) == 48
    with pytest.raises(DataError, match="less than one block of 64"):
        encoded(3, 64)


def test_tokens_without_a_row_in_the_model_are_refused():
    config = make_causal("llama").config
    TASK.check_encoded(config, encoded(10, 8))
    config.vocab_size = 8
    with pytest.raises(RecipeError, match=r"processor: the tokenizer makes token 13 of this data, .* vocabulary of 8"):
        TASK.check_encoded(config, encoded(10, 8))


# --- metrics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_perplexity_is_that_of_the_models_own_loss(name):
    model, inputs = make_causal(name), batch()
    found, labels = predicted(model, inputs), inputs["labels"].numpy()
    with torch.no_grad():
        loss, logits = model(**inputs)[:2]
    assert TASK.metric("perplexity")(found, labels) == pytest.approx(math.exp(loss), rel=1e-5)
    hits = (logits[:, :-1].argmax(-1) == inputs["labels"][:, 1:]).float().mean()
    assert TASK.metric("accuracy")(found, labels) == pytest.approx(float(hits))
    assert len(TASK.answers(found)) == 3 * 8


def test_ignored_labels_count_nowhere():
    model, inputs = make_causal("llama"), batch()
    inputs["labels"][0, :5], inputs["labels"][2] = IGNORED, IGNORED
    found, labels = predicted(model, inputs), inputs["labels"].numpy()
    with torch.no_grad():
        loss = model(**inputs).loss
    assert TASK.metric("perplexity")(found, labels) == pytest.approx(math.exp(loss), rel=1e-5)
    assert len(TASK.answers(found)) == 4 + 8 == np.isfinite(found[..., 0]).sum()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_tokens_without_a_finite_loss_are_never_left_out(broken):
    model, inputs = make_causal("llama"), batch()
    inputs["labels"][0, :5] = IGNORED
    labels = inputs["labels"].numpy()
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"]).logits.numpy()
    found, worse = next_token(logits, {"labels": labels}), logits.copy()
    worse[0, :4], worse[1, 3:6] = broken, broken  # of the first text, only where the labels are ignored
    kept = next_token(worse, {"labels": labels})
    assert np.array_equal(np.isnan(kept[..., 0]), np.isnan(found[..., 0])) and np.isinf(kept[1, 3:6, 0]).all()
    assert unanswered(kept, "next_token").tolist() == [False, True, False]
    assert not unanswered(found, "next_token").any()
    assert TASK.metric("perplexity")(kept, labels) == np.inf
    parts = TASK.metric("perplexity").parts(kept, labels)
    assert parts.weights.tolist() == TASK.metric("perplexity").parts(found, labels).weights.tolist() == [4, 8, 8]
    assert len(TASK.answers(kept)) == len(TASK.answers(found))


def test_the_trainer_sees_what_the_workers_see():
    model, inputs = make_causal("gpt2"), batch()
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"]).logits
    kept = TASK.reduce_logits()((logits, "cache"), inputs["labels"])
    np.testing.assert_array_equal(kept.numpy(), predicted(model, inputs))
    assert get_task("text-classification").reduce_logits() is None

    class Output:
        predictions, label_ids = kept.numpy(), inputs["labels"].numpy()

    assert TASK.compute_metrics("perplexity")(Output())["perplexity"] > 1


def test_the_bootstrap_over_blocks_agrees_with_scoring_each_resample():
    generator = np.random.default_rng(0)
    labels = generator.integers(9, size=(60, 12))
    losses = generator.gamma(2.0, size=(2, 60, 11)) * generator.uniform(0.5, 2, size=(1, 60, 1))
    a, b = (np.stack([x, labels[:, 1:]], axis=-1) for x in (losses[0], losses[0] + 0.05 + 0.01 * losses[1]))
    perplexity = TASK.metric("perplexity")
    fast = paired_bootstrap(perplexity, a, b, labels, resamples=400)
    slow = paired_bootstrap(Metric(perplexity), a, b, labels, resamples=400)
    assert fast == pytest.approx(slow, abs=1e-9)  # the same draws
    assert 0 < fast[1] < fast[0] < fast[2]
    data = EvaluationSet(Path("x"), labels, "perplexity", perplexity, "next_token", TASK.predictions, TASK.answers)
    assert not quality("pytorch", a, data).higher_is_better
    row = difference("pytorch", a, b, data, resamples=50)
    assert row.agreement == 1.0 and row.loss == row.value > 0


# --- what follows from lower being better ---------------------------------------------------------------------------


def lm_result(before: float, after: float) -> Any:
    def measured(model: Any, value: float) -> Any:
        row = Quality(engine="pytorch", metric="perplexity", value=value, examples=7, higher_is_better=False)
        return model.model_copy(update={"quality": [row]})

    base = result()
    row = Difference(
        engine="pytorch", metric="perplexity", value=after - before, low=0, high=9, resamples=9, examples=7,
        agreement=0.5, counted="tokens", higher_is_better=False,
    )  # fmt: skip
    return result(
        task="text-generation",
        baseline=measured(base.baseline, before),
        compressed=measured(base.compressed, after),
        difference=[row],
    )


def test_requirements_are_named_after_the_metric():
    found = lm_result(20.0, 21.0)
    for name, measured in (("perplexity_ratio", 1.05), ("metric_ratio", 1.05), ("perplexity_drop", 1.0)):
        (line,) = check(found, {name: f"<={measured + 1e-9}"})
        assert line.met and line.measured == pytest.approx(measured)
    assert not check(found, {"perplexity_ratio": "<1.05"})[0].met
    with pytest.raises(RecipeError, match=r"require\.accuracy_drop: no such number"):
        check(found, {"accuracy_drop": "<=1"})
    with pytest.raises(RecipeError, match="Did you mean 'perplexity_ratio'"):
        parse_requirement("perplexity_rati", "<=1", "perplexity")


def test_the_card_says_that_lower_is_better():
    found = lm_result(20.0, 21.0)
    assert rows.metric_name(found) == "Perplexity (lower is better)"
    assert rows.agreement(found.difference[0]) == "50.0% of the tokens in 7 examples"
    assert rows.points(found, 1.0) == "+1.00" and rows.metric_name(result()) == "Accuracy (%)"


def test_an_export_of_another_perplexity_is_named():
    def said(export: float) -> list[str]:
        rows = [
            Quality(engine=e, metric="perplexity", value=v, examples=9, higher_is_better=False)
            for e, v in (("pytorch", 20.0), ("onnxruntime-int8", export))
        ]
        return findings(result().baseline, result().compressed.model_copy(update={"quality": rows}), [])

    assert said(21.0) == [
        "onnxruntime-int8 has 5.0% more perplexity than the same model in PyTorch (21.00 against 20.00)."
    ]
    assert said(20.1) == []
    assert said(15.0) == [
        "onnxruntime-int8 has 25.0% less perplexity than the same model in PyTorch (15.00 against 20.00)."
    ]


def test_the_best_checkpoint_is_the_one_of_least_perplexity(tmp_path):
    setup = open_recipe(load_recipe(causal_project(tmp_path)))
    best = {"metric_for_best_model": "perplexity"}
    assert selecting(best, setup) == {**best, "greater_is_better": False}
    assert selecting({"metric_for_best_model": "loss"}, setup) == {"metric_for_best_model": "loss"}


# --- a whole run ----------------------------------------------------------------------------------------------------


@pytest.mark.card_code
def test_a_run_from_scratch_to_card(monkeypatch, capsys, tmp_path):
    select = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "perplexity"}
    train = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 0.01, **select}
    recipe = causal_project(tmp_path, finetune={"train": train}, require={"perplexity_ratio": "<=1.05"})
    status, printed, errors = hfcompress(monkeypatch, capsys, "run", recipe, "--output", tmp_path / "out")
    assert status == 0, errors
    assert "perplexity_ratio <=1.05: met" in printed
    found = read_result(tmp_path / "out")
    before, after = (m.quality_in("pytorch").value for m in (found.baseline, found.compressed))
    assert 1 < before < 6 < len(WORDS)  # it learnt something
    assert found.headline().value == pytest.approx(after - before) and found.headline().counted == "tokens"
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "Perplexity (lower is better), PyTorch" in card and "AutoModelForCausalLM" in card
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [e for e in log if "eval_perplexity" in e]
    baseline = load_model(tmp_path / "out" / "baseline", AUTO)  # what later runs start from
    assert baseline.config.vocab_size == len(WORDS) and baseline.config.bos_token_id == 0
    assert (tmp_path / "out" / "baseline" / "tokenizer.json").exists()


def test_architectures_find_their_auto_class(tmp_path):
    assert auto_class_for("GPT2LMHeadModel") == AUTO
    assert auto_class_for("ViTForImageClassification") == "AutoModelForImageClassification"
    assert auto_class_for("Nonsense") is None
    save_checkpoint(make_causal("gpt2"), tmp_path / "teacher")
    assert type(load_teacher(tmp_path / "teacher", make_causal("llama"))).__name__ == "GPT2LMHeadModel"


# --- distillation ---------------------------------------------------------------------------------------------------


def distilled(model: torch.nn.Module, teacher: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    method = create("distill", DistillConfig(logits=1.0, temperature=1.0).model_dump())
    Lifecycle([method], training=True).prepare(model, teacher=teacher)
    plain = {name: value for name, value in inputs.items() if name != "labels"}
    with torch.no_grad():
        return float(method.extra_loss(inputs, model(**plain), teacher(**plain)))


def test_distillation_is_a_mean_over_the_tokens_that_count():
    student, teacher, inputs = make_causal("llama"), make_causal("llama", seed=1), batch(2, 6)
    assert distilled(student, student, inputs) == pytest.approx(0, abs=1e-6)
    inputs["labels"][0, :3] = inputs["labels"][1, 5] = IGNORED
    with torch.no_grad():
        ours, theirs = (F.log_softmax(m(input_ids=inputs["input_ids"]).logits, -1) for m in (student, teacher))
    each = (theirs.exp() * (theirs - ours)).sum(-1)  # KL at every position; position i foretells token i + 1
    wanted = torch.cat([each[0, 2:5], each[1, 0:4]]).mean()
    assert distilled(student, teacher, inputs) == pytest.approx(float(wanted), rel=1e-4)


def test_distillation_leaves_padding_out():
    student, teacher, inputs = make_causal("llama"), make_causal("llama", seed=1), batch(2, 6)
    short = {"input_ids": inputs["input_ids"][:, :4], "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    padded = {"input_ids": inputs["input_ids"], "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]] * 2)}
    assert distilled(student, teacher, padded) == pytest.approx(distilled(student, teacher, short), rel=1e-5)
    logits = torch.randn(2, 3, 5)
    assert soft_cross_entropy(logits, logits + 1, 2.0, torch.zeros(2, 3, dtype=torch.bool)) == 0


def test_a_teacher_of_another_vocabulary_is_refused():
    teacher = make_causal("llama")
    teacher.resize_token_embeddings(20)
    with pytest.raises(Exception, match="different vocabularies: 20 and 14"):
        distilled(make_causal("llama"), teacher, batch())


def test_a_language_model_learns_from_its_teacher(tmp_path):
    train = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 0.001}
    stage = {"methods": {"distill": {"hidden": 0.1}}, "train": train}
    save_checkpoint(make_causal("llama"), tmp_path / "base", tokenizer())
    recipe = causal_project(
        tmp_path,
        model=str(tmp_path / "base"),
        processor=None,
        finetune=None,
        stages=[stage, {"methods": {"distill": {}}, "train": train}],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "measure", _stop)
        with pytest.raises(StopRunError):
            execute.run_recipe(load_recipe(recipe), tmp_path / "out")
    assert not torch.equal(
        load_model(tmp_path / "out" / "model", AUTO).lm_head.weight, make_causal("llama").lm_head.weight
    )


class StopRunError(Exception):
    """Ends a run where a test has seen enough."""


def _stop(*_: object, **__: object) -> Any:
    raise StopRunError


# --- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_onnx_gives_the_logits_of_the_whole_text(name, tmp_path):
    model = make_causal(name)
    files = export_onnx(model, tmp_path)  # raises when the logits differ
    assert errors(model_logits(model), spec_of(model), open_onnx(files["onnxruntime"], 1)).max() < 1e-4
    assert model.config.use_cache  # the model itself stays as it was


def model_logits(model: torch.nn.Module) -> torch.nn.Module:
    class Logits(torch.nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return model(input_ids=ids, attention_mask=mask).logits

    return Logits()


# --- models too large to hold twice ---------------------------------------------------------------------------------


def test_a_checkpoint_keeps_its_dtype_and_leaves_the_mapped_file(tmp_path):
    model = make_causal("llama").to(torch.bfloat16)
    save_checkpoint(model, tmp_path / "half")
    loaded = load_model(tmp_path / "half", AUTO, dtype="auto")
    assert loaded.dtype == torch.bfloat16 and load_model(tmp_path / "half", AUTO).dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert mapped_weights(load_model(tmp_path / "half", AUTO, dtype="bfloat16")) == mapped_weights(loaded) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hfcompress.checkpoint.load.own_memory_", lambda model: None)
        assert mapped_weights(load_model(tmp_path / "half", AUTO, dtype="auto")) > 0


def mapped_weights(model: torch.nn.Module) -> int:
    """Return how many weights still lie in a mapped file."""
    files = checkpoint_memory._mapped_files()
    return sum(any(low <= p.data_ptr() < high for low, high in files) for p in model.parameters())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_of_a_mapped_file_are_given_back(tmp_path):
    from safetensors.torch import load_file

    path = tmp_path / "t.safetensors"
    save_file({"a": torch.ones(1 << 22), "b": torch.full((3,), 2.0)}, path)
    holder = torch.nn.Module()
    for name, tensor in load_file(path).items():
        holder.register_buffer(name, tensor)
    checkpoint_memory.own_memory_(holder)
    assert holder.a.sum() == 1 << 22 and holder.b.tolist() == [2, 2, 2]

    def resident() -> int:
        text = Path("/proc/self/smaps").read_text()
        return sum(int(part.split("Rss:")[1].split()[0]) for part in text.split(str(path))[1:])

    mapped = load_file(path)
    mapped["a"].sum()
    before = resident()
    checkpoint_memory._forget(mapped["a"], checkpoint_memory._mapped_files())
    assert before > 16_000 > 200 > resident()  # kB


def test_a_large_model_is_planned_and_counted_by_its_shapes(monkeypatch):
    model = make_causal("llama")
    recipe = load_recipe(
        {
            "model": "x",
            "task": "text-generation",
            "data": {"path": "x"},
            "stages": [{"methods": {"quantize_weights": {"bits": 4}}}],
        }
    ).recipe
    common = {"recipe_hash": "", "train_examples": 8, "evaluate_examples": 8}
    inputs = example_inputs(model, 1, 8)
    small, flops = make_plan(recipe, model, **common), count_flops(model, inputs)
    monkeypatch.setattr(checkpoint_memory, "LARGE_BYTES", 1)
    monkeypatch.setattr("copy.deepcopy", no_second_copy)
    assert make_plan(recipe, model, **common) == small and count_flops(model, inputs) == flops
    assert not any(p.is_meta for p in model.parameters())
    assert small.stages[0].weight_bytes < small.weight_bytes
    compress(model, [QuantizeWeightsConfig(bits=4)])
    assert small.stages[0].parameters == count_parameters(model)[0]
    assert small.stages[0].parameters > small.parameters, "two weights of 4 bits are two, not one byte; and scales"


DEEPCOPY = copy.deepcopy


def no_second_copy(value: Any, memo: Any = None) -> Any:
    """Copy as `copy.deepcopy` does, and fail when weights with values come along."""
    done = DEEPCOPY(value, memo)
    if isinstance(done, torch.nn.Module):
        assert all(p.is_meta for p in done.parameters()), "a second copy of the weights"
    return done


def test_what_takes_values_is_unknown_before_a_large_model_runs(monkeypatch):
    model = make_causal("llama")
    stages = [{"methods": {"quantize_weights": {}}}] * 2
    recipe = load_recipe({"model": "x", "task": "text-generation", "data": {"path": "x"}, "stages": stages}).recipe
    monkeypatch.setattr(checkpoint_memory, "LARGE_BYTES", 1)

    def values(*_: object, **__: object) -> None:
        torch.zeros(1, device="meta").item()

    monkeypatch.setattr("hfcompress.methods.quantize_weights.pack_", values)
    plan = make_plan(recipe, model, recipe_hash="", train_examples=8, evaluate_examples=8)
    assert [(s.parameters, s.methods[0].targets) for s in plan.stages] == [(None, [])] * 2


def test_a_one_shot_run_holds_one_model(monkeypatch, tmp_path):
    save_checkpoint(make_causal("llama"), tmp_path / "base", tokenizer())
    recipe = causal_project(tmp_path, model=str(tmp_path / "base"), processor=None, finetune=None, dtype="bfloat16")
    monkeypatch.setattr(checkpoint_memory, "LARGE_BYTES", 1)
    monkeypatch.setattr("copy.deepcopy", no_second_copy)
    held = []

    def measure(setup: Any, *_: object, **__: object) -> Any:
        held.append(sum(p.numel() for p in setup.model.parameters()))
        raise StopRunError

    monkeypatch.setattr(execute, "measure", measure)
    with pytest.raises(StopRunError):
        execute.run_recipe(load_recipe(recipe), tmp_path / "out")
    assert held == [0]  # given back before anything is measured
    assert load_model(tmp_path / "out" / "model", AUTO, dtype="auto").dtype == torch.bfloat16


def test_a_released_model_holds_nothing():
    model = make_causal("gpt2")
    release_(model)
    assert sum(p.numel() for p in model.parameters()) == 0


# --- progress and interruption --------------------------------------------------------------------------------------


def test_loops_inside_loops_divide_the_bar():
    seen: list[tuple[str, float]] = []
    with listening(lambda text, fraction: seen.append((text, fraction))):
        for _ in track(["one", "two"]):
            for _ in track([1, 2]):
                pass
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and ("2", 0.75) in seen
    before = len(seen)
    list(track([1]))
    assert len(seen) == before  # nobody listens any more


def test_an_interrupted_compression_leaves_a_model_that_runs():
    model = make_causal("llama")
    before = model(**batch()).logits

    def interrupt(text: str, fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, QuantizeWeightsConfig(), on_progress=interrupt)
    assert not wrapped(model) and torch.equal(model(**batch()).logits, before)
    seen: list[float] = []
    compress(model, QuantizeWeightsConfig(), on_progress=lambda text, fraction: seen.append(fraction))
    assert seen == sorted(seen) and seen[-1] == 1.0
