"""Numbers that need no clock: statistics, sizes, operations, requirements, findings, environment."""

import getpass
import io
import json
import platform
import weakref
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import save_file
from sklearn.metrics import confusion_matrix
from transformers import BertConfig, BertForSequenceClassification

from hfcompress.core.errors import MeasureError, RecipeError
from hfcompress.export.inputs import example_inputs
from hfcompress.export.runtime import Source as StoredModel
from hfcompress.measure.batches import batch_files, count_batches, read_batches, write_batches
from hfcompress.measure.bench import Bench
from hfcompress.measure.cells import read_suite
from hfcompress.measure.energy import energy, why_absent
from hfcompress.measure.environment import environment
from hfcompress.measure.findings import findings
from hfcompress.measure.flops import count_flops
from hfcompress.measure.kept import _digest as digest
from hfcompress.measure.kept import keeping, measured_key
from hfcompress.measure.latency import latency_row, speedups
from hfcompress.measure.layout import layout_of
from hfcompress.measure.quality import EvaluationSet, difference, quality
from hfcompress.measure.require import check, parse_requirement
from hfcompress.measure.result import (
    Difference,
    LatencyRow,
    Method,
    ModelResult,
    Quality,
    Result,
    Source,
    Speedup,
    read_result,
)
from hfcompress.measure.size import count_parameters, export_files, local_folder, weight_files
from hfcompress.measure.statistics import (
    accuracy,
    agreement,
    calibration_error,
    kl_divergence,
    mcnemar,
    paired_bootstrap,
    right_by_class,
    spread,
)
from hfcompress.measure.workloads import Shape, common_spec
from hfcompress.modules.packed import pack_
from hfcompress.modules.ties import tie_
from hfcompress.run.bench_rows import bench_rows

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def tiny_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=100, max_position_embeddings=32, num_labels=3, **SMALL))


# --- statistics -----------------------------------------------------------------------------------------------------


def predictions(n: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=n)
    a = np.where(generator.random(n) < 0.9, labels, (labels + 1) % 3)
    b = np.where(generator.random(n) < 0.05, (a + 1) % 3, a)
    return a, b, labels


def test_bootstrap_is_paired_and_agrees_with_theory():
    a, b, labels = predictions()
    value, low, high = paired_bootstrap(accuracy, a, b, labels)
    assert value == pytest.approx(accuracy(b, labels) - accuracy(a, labels))
    gain = (b == labels).astype(float) - (a == labels)
    half = 1.96 * gain.std() / np.sqrt(len(labels))
    assert low == pytest.approx(value - half, abs=0.004) and high == pytest.approx(value + half, abs=0.004)
    assert paired_bootstrap(accuracy, a, a, labels) == (0, 0, 0)
    assert (value, low, high) == paired_bootstrap(accuracy, a, b, labels)
    assert (low, high) != paired_bootstrap(accuracy, a, b, labels, seed=1)[1:]


def test_the_general_bootstrap_agrees_with_the_fast_one():
    a, b, labels = predictions()
    fast = paired_bootstrap(accuracy, a, b, labels)
    general = paired_bootstrap(lambda p, y: float((p == y).mean()), a, b, labels)
    assert general == pytest.approx(fast, abs=0.004)
    narrow = paired_bootstrap(accuracy, a, b, labels, level=0.5)
    assert fast[1] < narrow[1] < narrow[2] < fast[2]


def test_agreement_and_divergence():
    assert agreement(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])) == 0.75
    p, q = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    wanted = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert kl_divergence(p, q) == pytest.approx(wanted)
    assert kl_divergence(p + 7, q - 300) == pytest.approx(wanted)
    assert kl_divergence(q, q) == 0


def test_mcnemar_is_the_exact_binomial_test():
    labels = np.zeros(20, dtype=int)
    a, b = labels.copy(), labels.copy()
    a[:2], b[2:10] = 1, 1  # only b right on 2, only a right on 8
    lost, gained, p = mcnemar(a, b, labels)
    assert (lost, gained) == (8, 2)
    assert p == pytest.approx(2 * sum(comb(10, k) for k in range(3)) / 2**10)  # two-sided, by hand
    assert mcnemar(a, a, labels) == (0, 0, 1.0)


def test_calibration_error_by_hand():
    logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.35, 0.65]])
    labels = np.array([0, 1, 1, 1])
    wanted = (abs(1.8 - 1) + abs(0.6 - 1) + abs(0.65 - 1)) / 4  # bins of a fifteenth: .9 and .9, .6, .65
    assert calibration_error(logits, labels) == pytest.approx(wanted)
    assert calibration_error(logits, labels, bins=1) == pytest.approx(abs(3.05 - 3) / 4)
    assert calibration_error(1e4 * logits, logits.argmax(-1)) == 0


def test_right_answers_by_class_are_the_diagonal_of_the_confusion_matrix():
    a, _, labels = predictions()
    np.testing.assert_array_equal(right_by_class(a, labels, 3), confusion_matrix(labels, a).diagonal())


def test_spread_over_seeds():
    found = spread([1.0, 2.0, 4.0])
    assert (found.mean, found.runs) == (pytest.approx(7 / 3), 3)
    assert found.deviation == pytest.approx(np.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2))
    assert spread([0.5]).deviation is None


def test_a_classifier_is_compared_class_by_class_and_old_differences_stay_valid():
    logits = np.eye(3)[[0, 0, 1, 1]] * 5.0
    worse = np.eye(3)[[0, 1, 1, 1]] * 5.0
    data = EvaluationSet(Path("x"), np.array([0, 0, 1, 0]), "accuracy", accuracy, classes=("a", "b", "c"))
    row = difference("pytorch", logits, worse, data, resamples=10)
    assert [(c.name, c.examples, c.before, c.after) for c in row.classes] == [("a", 3, 2, 1), ("b", 1, 1, 1)]
    assert row.classes[0].drop == pytest.approx(1 / 3) and (row.mcnemar.lost, row.mcnemar.gained) == (1, 0)
    assert row.divergence == pytest.approx(kl_divergence(logits, worse)) and row.divergence > 0
    assert quality("pytorch", worse, data).calibration_error == pytest.approx(calibration_error(worse, data.labels))
    plain = row.model_dump(exclude={"divergence", "mcnemar", "classes"})
    assert Difference.model_validate(plain).classes == []


def test_predictions_are_kept_until_a_file_changes(tmp_path):
    made = []

    def compute() -> np.ndarray:
        made.append(1)
        return np.array([[1.0, np.nan]])

    for _ in range(2):
        np.testing.assert_array_equal(keeping(tmp_path, lambda: "key", compute), [[1.0, np.nan]])
    assert len(made) == 1
    (tmp_path / "key.safetensors").write_bytes(b"cut short")
    keeping(tmp_path, lambda: "key", compute)
    keeping(None, lambda: "key", compute)
    assert len(made) == 3

    def write(name: str, content: int) -> None:
        if name == "batches":
            write_batches(tmp_path / name, [{"input_ids": np.array([content])}])
        else:
            (tmp_path / name).write_bytes(b"%d" % content)

    for name in ("config.json", "model.safetensors", "batches"):
        write(name, 1)
    key = lambda: measured_key(StoredModel(str(tmp_path)), "pytorch", batch_files(tmp_path / "batches"), 1, "logits")  # noqa: E731
    seen = [key(), key()]
    for name in ("model.safetensors", "config.json", "batches"):
        write(name, 2)
        seen.append(key())
    assert seen[0] == seen[1] and len(set(seen)) == 4


# --- size -----------------------------------------------------------------------------------------------------------


def test_only_the_weights_that_load_are_counted(tmp_path):
    for name, size in {"model.safetensors": 100, "pytorch_model.bin": 300, "optimizer.bin": 5, "x.txt": 9}.items():
        (tmp_path / name).write_bytes(b"0" * size)
    assert weight_files(tmp_path) == {"model.safetensors": 100}
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"0" * 50)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert sum(weight_files(tmp_path).values()) == 150
    for file in tmp_path.glob("model*"):
        file.unlink()
    assert weight_files(tmp_path) == {"pytorch_model.bin": 300}
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(MeasureError, match="holds no weight files"):
        weight_files(tmp_path)


def test_exports_are_listed_by_their_path(tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"12345")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert export_files(tmp_path) == {"onnx/model.onnx": 5}


def test_a_checkpoint_that_is_nowhere(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MeasureError, match="'no/such-model' is neither a folder nor a model on the Hub"):
        local_folder("no/such-model")


def test_files_of_a_hub_model_are_those_of_its_revision(monkeypatch):
    monkeypatch.setattr(
        "transformers.utils.cached_file", lambda name, file, revision=None: f"/{name}/{revision}/{file}"
    )
    assert local_folder("user/name", "v2") == Path("/user/name/v2")


def test_parameters_count_shared_tensors_once_and_packed_numbers_one_by_one():
    model = tiny_bert()
    total, nonzeros = count_parameters(model)
    assert total == sum(p.numel() for p in model.parameters())
    assert nonzeros < total  # biases start at zero
    layers = model.bert.encoder.layer
    once = layers[1].intermediate.dense.weight.numel()
    layers[1].intermediate.dense.weight = layers[0].intermediate.dense.weight
    assert count_parameters(model)[0] == total - once
    pack_(model, "bert.pooler.dense")
    assert count_parameters(model)[0] == total - once + model.bert.pooler.dense.weight_scale.numel()


def test_a_module_that_packs_several_numbers_in_one_says_so():
    module = torch.nn.Linear(4, 3, bias=False)
    module.packed_numel, module.packed_nonzeros = {"weight": 24}, {"weight": 20}
    assert count_parameters(module) == (24, 20)


# --- operations -----------------------------------------------------------------------------------------------------


def test_the_layout_counts_every_number_once():
    model = tiny_bert()
    pack_(model, "bert.encoder.layer.1.output.dense")
    layout = {part.name: part for part in layout_of(model)}
    assert list(layout) == ["embeddings", "block 0", "block 1", "rest"]
    assert sum(part.numbers for part in layout.values()) == count_parameters(model)[0]
    first, second = layout["block 0"], layout["block 1"]
    assert (first.heads, first.units, first.width, first.bits) == (4, 64, 32, 32.0)
    share = 64 * 32 / (4 * 32 * 32 + 2 * 64 * 32)
    assert second.bits == pytest.approx(8 * share + 32 * (1 - share), abs=1e-3) and second.size_bytes < first.size_bytes
    assert layout["embeddings"].tokens == 100
    names = [name for name, _ in model.named_parameters() if name.startswith("bert.encoder.layer.0")]
    plain = tiny_bert()
    tie_(plain, {name.replace("layer.0", "layer.1"): name for name in names})
    shared = {part.name: part for part in layout_of(plain)}["block 1"]
    assert (shared.shares, shared.numbers, shared.bits) == ("block 0", 0, None)


def test_flops_are_those_of_the_formula_and_the_model_stays():
    model = tiny_bert().train()
    h, f, length, classes = 32, 64, 10, 3
    layer = 4 * 2 * length * h * h + 2 * 2 * length * h * f + 2 * 2 * length * length * h
    wanted = 2 * layer + 2 * h * h + 2 * h * classes
    assert count_flops(model, example_inputs(model, 1, length)) == wanted
    assert count_flops(model, example_inputs(model, 4, length)) == wanted
    assert model.training and model.config._attn_implementation == "sdpa"
    pack_(model, "bert.encoder.layer.0.output.dense")
    assert count_flops(model, example_inputs(model, 1, length)) == wanted


# --- batches --------------------------------------------------------------------------------------------------------


def test_batches_come_back_in_order(tmp_path):
    batches = [
        {"input_ids": torch.full((2, n), n), "labels": torch.tensor([n, n]), "text": "left out"} for n in range(1, 13)
    ]
    assert write_batches(tmp_path / "b.safetensors", batches) == 12
    read = list(read_batches(tmp_path / "b.safetensors"))
    assert [b["input_ids"].shape[1] for b in read] == list(range(1, 13)) and set(read[0]) == {"input_ids", "labels"}
    with pytest.raises(MeasureError, match="evaluation split is empty"):
        write_batches(tmp_path / "empty.safetensors", [])
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(MeasureError, match=r"bad.safetensors does not hold evaluation batches"):
        list(read_batches(tmp_path / "bad.safetensors"))
    save_file({"00000.x": np.zeros(1)}, str(tmp_path / "one.safetensors"))
    assert len(list(read_batches(tmp_path / "one.safetensors"))) == 1


def test_batches_beyond_a_bound_go_to_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("hfcompress.measure.batches.SHARD_BYTES", 100)
    alive = []

    def made(count):
        for index in range(count):
            array = np.full((4, 2), index, dtype=np.float32)
            alive.append(weakref.ref(array))
            yield {"x": array}
            del array
            assert sum(ref() is not None for ref in alive) <= 5

    path = tmp_path / "b.safetensors"
    assert write_batches(path, made(11)) == 11 == count_batches(path)
    assert [file.name for file in batch_files(path)] == ["b.00000.safetensors", "b.00001.safetensors", path.name]
    assert [int(batch["x"][0, 0]) for batch in read_batches(path)] == list(range(11))
    key = [digest(file) for file in batch_files(path)]
    write_batches(path, made(9))
    assert count_batches(path) == 9 and digest(batch_files(path)[0]) == key[0]
    (tmp_path / "b.00001.safetensors").unlink()
    with pytest.raises(MeasureError, match=r"b.00001.safetensors does not hold evaluation batches"):
        list(read_batches(path))
    broken = (b for b in made(9) if b["x"][0, 0] < 6 or b["no such name"])
    with pytest.raises(KeyError):
        write_batches(path, broken)
    assert not path.exists()  # what is not whole is not there
    write_batches(path, made(2))
    assert list(tmp_path.iterdir()) == [path]


def test_inputs_for_several_models_fit_the_smallest():
    from hfcompress.export.inputs import InputSpec

    text = InputSpec(("input_ids", "attention_mask", "token_type_ids"), 30000, 0, 2, 512)
    small = InputSpec(("input_ids", "attention_mask"), 11000, 0, 1, 128)
    both = common_spec([text, small])
    assert (both.names, both.vocab_size, both.token_types, both.max_length) == (text.names, 11000, 1, 128)
    with pytest.raises(MeasureError, match="a text model and an image model"):
        common_spec([text, InputSpec(("pixel_values",))])


# --- result: requirements and findings ------------------------------------------------------------------------------


def model_result(
    size: int, parameters: int, nonzeros: int, flops: int, metric: float, p50: float, large: float = 1
) -> ModelResult:
    """`large` is the factor on time and operations at the larger shape."""
    times = {"pytorch": p50, "onnxruntime": p50 / 2}
    return ModelResult(
        name="m",
        size_bytes=size,
        files={"model.safetensors": size},
        parameters=parameters,
        nonzeros=nonzeros,
        flops={"1x32": flops, "1x128": int(5 * flops * large)},
        quality=[Quality(engine=e, metric="accuracy", value=metric, examples=100) for e in times],
        latency=[
            latency_row(e, shape, 2, 7, [t * shape.batch * (large if shape.batch > 1 else 1)])
            for e, t in times.items()
            for shape in (Shape(1, 32), Shape(8, 128))
        ],
    )


def result(**changes) -> Result:
    baseline = model_result(8_000_000, 2000, 2000, 600, 0.90, 6.0)
    compressed = model_result(1_000_000, 500, 480, 200, 0.89, 2.0, large=0.5)
    values = {
        "title": "t",
        "created": "2026-01-01T00:00:00Z",
        "task": "text-classification",
        "auto_class": "AutoModelForSequenceClassification",
        "loads_with": "hfcompress",
        "base_model": Source(id="a/b"),
        "dataset": Source(id="sst2"),
        "methods": [],
        "stages": [],
        "baseline": baseline,
        "compressed": compressed,
        "difference": [
            Difference(
                engine="pytorch",
                metric="accuracy",
                value=-0.01,
                low=-0.02,
                high=0.0,
                resamples=10,
                examples=100,
                agreement=0.95,
            )
        ],
        "speedup": speedups(baseline.latency, compressed.latency),
        "environment": {},
        "seed": 0,
        "recipe": "",
        "recipe_hash": "",
    }
    return Result(**{**values, **changes})


def test_a_tail_is_told_of_enough_passes_only():
    few, many = (latency_row("pytorch", Shape(2, 8), 1, 7, list(range(1, n + 1))) for n in (99, 101))
    assert (few.p99_ms, few.passes) == (None, 99)
    assert (many.p50_ms, many.p90_ms, many.p99_ms, many.passes) == (51, 91, 100, 101)
    older = LatencyRow.model_validate(few.model_dump(exclude={"p99_ms", "passes"}))
    assert older.passes is None and older.p99_ms is None


def test_the_table_of_bench_fits_100_columns():
    slow = model_result(90_000_000, 2000, 2000, 600, 0.90, 1234.56)
    fast = model_result(1_000_000, 500, 480, 200, 0.89, 2.0)
    rows = [latency_row("onnxruntime-static-int8", Shape(128, 128), 2, 7, [1234.5] * n) for n in (20, 100)]
    fast = fast.model_copy(update={"latency": rows, "name": "someone/a-rather-long-name-of-a-model",
                                   "load_seconds": {"onnxruntime-static-int8": 12.345}})  # fmt: skip
    gain = {"engine": "onnxruntime-static-int8", "batch": 128, "length": 128}
    ratios = [Speedup(**gain, baseline_engine=e, ratio=r) for e, r in (("pytorch", 12.34), (gain["engine"], 1.5))]
    console = Console(width=100, file=io.StringIO())
    console.print(bench_rows(Bench({"a": slow, "b": fast}, {"b": ratios})))
    printed = console.file.getvalue()
    assert "…" not in printed and max(map(len, printed.splitlines())) <= 100
    first, second = (line.split() for line in printed.splitlines() if "static-int8" in line)
    cells = "onnxruntime-static-int8 128×128 1234.50 1234.50 – 12.35 1.50× 12.34×"
    assert [c for c in first if c not in "│┃"] == cells.split()
    assert [c for c in second if c not in "│┃"] == cells.replace("–", "1234.50").split()
    assert "p99: only of 100 timed passes or more" in " ".join(printed.split())
    assert "someone/a-rather-long-na" in printed  # the rest stands below


def test_speedups_are_against_the_same_engine_and_against_pytorch():
    found = {(s.engine, s.baseline_engine, s.batch, s.length): s.ratio for s in result().speedup}
    assert len(found) == 6
    assert found["pytorch", "pytorch", 1, 32] == pytest.approx(3)
    assert found["onnxruntime", "onnxruntime", 8, 128] == pytest.approx(6)
    assert found["onnxruntime", "pytorch", 8, 128] == pytest.approx(12)


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("size_ratio", 8), ("size_mb", 1), ("parameter_ratio", 4), ("flops_ratio", 3), ("accuracy_drop", 0.01),
        ("metric_drop", 0.01), ("agreement", 0.95), ("speedup", 6),
    ],
)  # fmt: skip
def test_each_requirement_measures_what_it_says(name, measured):
    below, above = check(result(), {name: f">={measured * 0.99}"}), check(result(), {name: f"> {measured * 1.01}"})
    assert below[0].measured == pytest.approx(measured)
    assert below[0].met and not above[0].met


def test_bad_requirements_are_recipe_errors():
    with pytest.raises(RecipeError, match=r"require.size_ration: no such number.*Did you mean 'size_ratio'"):
        parse_requirement("size_ration", ">=8")
    for text in ("8", "about 8", ">= eight", "=>8", ">=8 or so", "<=1%"):
        with pytest.raises(RecipeError, match=r"require.size_ratio: .* is not a bound; write"):
            parse_requirement("size_ratio", text)
    bound = parse_requirement("accuracy_drop", " <= 1e-2 ")
    assert bound.bound == 0.01 and bound.met(0.01) and bound.met(0.91 - 0.90) and not bound.met(0.0101)
    assert not parse_requirement("accuracy_drop", "<0.01").met(0.91 - 0.90)


def test_a_requirement_that_was_not_measured_says_what_to_add():
    with pytest.raises(MeasureError, match=r"require.speedup: this run timed nothing"):
        check(result(speedup=[]), {"speedup": ">=2"})
    with pytest.raises(MeasureError, match=r"require.accuracy_drop|require.metric_drop"):
        check(result(difference=[]), {"accuracy_drop": "<=0.01"})


def test_findings_are_silent_on_success_and_plain_on_failure():
    good = result()
    assert findings(good.baseline, good.compressed, good.speedup) == []
    slow = model_result(7_900_000, 2000, 1500, 600, 0.90, 6.4)
    said = "\n".join(findings(good.baseline, slow, speedups(good.baseline.latency, slow.latency), waiting=0.3))
    assert "The compressed checkpoint is not smaller: 7.9 MB against 8.0 MB" in said
    assert "onnxruntime at 8×128 is slower than the same engine on the original (0.94×)." in said
    assert "25% of the compressed model's weights are zero. They lie in the file in full" in said
    assert "threads waited 30% of the time" in said
    sparse = model_result(5_000_000, 2000, 1000, 600, 0.90, 6.0)  # its zeros left the file, but take their time
    assert findings(good.baseline, sparse, speedups(good.baseline.latency, sparse.latency)[:1]) == [
        "pytorch at 1×32 is no faster than the same engine on the original (1.00×).",
        "50% of the compressed model's weights are zero. No engine measured here skips them: they save no time, and "
        "bytes only in layers that are stored without them.",
    ]
    same = [Speedup(engine="pytorch", baseline_engine="pytorch", batch=1, image_size=56, ratio=1.01)]
    assert findings(good.baseline, good.compressed, same) == [
        "pytorch at 1×56 is no faster than the same engine on the original (1.01×)."
    ]


def test_zeros_that_stay_in_the_file_are_no_saving():
    base = result().baseline
    full = model_result(8_000_000, 2000, 1000, 600, 0.90, 6.0)
    assert any("50% of" in f and "save neither time nor bytes" in f for f in findings(base, full, []))
    sliced = model_result(4_000_000, 1000, 500, 600, 0.90, 6.0)  # smaller, its zeros are in the file all the same
    assert findings(base, sliced, []) == [
        "50% of the compressed model's weights are zero. They lie in the file in full: they save neither time nor "
        "bytes."
    ]


def test_parameters_that_are_gone_from_the_count_but_not_from_the_file():
    base = result().baseline
    wide = model_result(7_000_000, 1000, 1000, 600, 0.90, 6.0)
    assert findings(base, wide, []) == [
        "Parameters fell to 50% but the weight files only to 88% of the original's: the count promises more than the "
        "bytes hold."
    ]
    assert findings(base, model_result(4_100_000, 1000, 1000, 600, 0.90, 6.0), []) == []


def test_quantization_without_bytes_or_without_an_engine_is_named():
    base = result().baseline
    quantizes = [Method(name="q", title="Q", category="parameter quantization")]

    def said(notes: dict[str, str], size: int = 8_000_000, methods=quantizes) -> str:
        small = model_result(size, 2000, 2000, 600, 0.90, 6.0).model_copy(update={"runs_in": notes})
        return "\n".join(findings(base, small, [], methods=methods))

    floats = {"pytorch": "weights float32; computed in float32"}
    packed = {"pytorch": "weights 8-bit (3), float32 (1); computed in float32"}
    assert "holds its weights as floats" in said(floats)
    assert "holds its weights as floats" not in said(floats, methods=[])
    assert said(floats, size=2_000_000) == ""  # coded otherwise: the bytes are gone
    assert "widens them and computes in floats" in said(packed, size=2_000_000)
    blocks = "weights 4-bit; computed in float32; kernels MatMulNBits (3), FusedMatMul (2)"
    assert "widens them and computes in floats" in said({**packed, "onnxruntime": blocks}, size=2_000_000)
    for note in ("weights 8-bit; activations int8, dynamic (3)", f"activations int8, dynamic (3); {blocks}",
                 "weights 8-bit; kernels MatMulIntegerToFloat (3)"):  # fmt: skip
        assert said({**packed, "onnxruntime-int8": note}, size=2_000_000) == ""


def test_an_export_larger_than_the_checkpoint_is_named():
    small = result().compressed.model_copy(update={"exports": {"onnx/a.onnx": 1_200_000, "onnx/b.onnx": 1_090_000}})
    assert findings(result().baseline, small, []) == [
        "`onnx/a.onnx` is 1.20× as large as the checkpoint: 1.2 MB against 1.0 MB."
    ]


def test_an_export_that_loses_accuracy_is_named():
    rows = [
        Quality(engine=e, metric="f1", value=v, examples=9) for e, v in (("pytorch", 0.9), ("onnxruntime-int8", 0.8))
    ]
    worse = result().compressed.model_copy(update={"quality": rows})
    assert findings(result().baseline, worse, []) == [
        "In onnxruntime-int8 the f1 is 80.00, 10.00 points below PyTorch's."
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            0.8658,
            "In onnxruntime-int8 the accuracy is 86.58, 1.26 points below PyTorch's: its kernels round activations",
        ),
        (0.8830, "In onnxruntime-int8 the accuracy is 88.30, 0.46 points above PyTorch's."),
        (0.8755, ""),
    ],
)
def test_an_export_of_another_accuracy_is_named_with_the_reason_where_it_is_known(value, words):
    rows = [
        Quality(engine=e, metric="accuracy", value=v, examples=872)
        for e, v in (("pytorch", 0.8784), ("onnxruntime-int8", value))
    ]
    notes = {"onnxruntime-int8": "weights 8-bit; activations int8, static (2), dynamic (3)"}
    found = findings(result().baseline, result().compressed.model_copy(update={"quality": rows, "runs_in": notes}), [])
    assert len(found) == bool(words) and "".join(found).startswith(words)


def test_more_memory_and_slower_loading_in_one_engine_are_named():
    before = {"peak_memory_bytes": {"pytorch": 100e6, "onnxruntime": 100e6}, "load_seconds": {"pytorch": 0.2}}
    after = {
        "peak_memory_bytes": {"pytorch": 430e6, "onnxruntime": 124e6, "openvino": 900e6},
        "load_seconds": {"pytorch": 0.5},
        "runs_in": {"pytorch": "weights ternary (36), float32 (1); computed in float32", "onnxruntime-int8": "int8"},
        "size_bytes": 500_000,
    }
    base = result().baseline.model_copy(update={**before, "size_bytes": 9_500_000})
    assert findings(base, result().compressed.model_copy(update=after), []) == [
        "19.0× smaller on disk, but 4.30× the original's peak memory in pytorch, where packed weights are widened: 430 "
        "MB against 100 MB.",
        "Loading takes 2.50× as long as the original's in pytorch: 0.50 s against 0.20 s.",
    ]
    notes = {"pytorch": "weights 4-bit (36); computed in float32; kernels MatMulNBits (36)"}
    (kept_packed, _) = findings(base, result().compressed.model_copy(update={**after, "runs_in": notes}), [])[-2:]
    assert "4.30× the original's peak memory in pytorch: 430 MB" in kept_packed
    whole = result().compressed.model_copy(update={**after, "size_bytes": 9_500_000, "runs_in": {}})
    assert any(
        f.startswith("The compressed model takes 4.30× the original's peak memory") for f in findings(base, whole, [])
    )


def test_energy_that_was_not_measured_is_said_so_with_the_reason(tmp_path):
    assert energy(tmp_path) == "not measured: this machine shows no energy counter (RAPL)"
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir()  # what is there and cannot be read
    assert "may not be read" in energy(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").rmdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1")
    assert why_absent(tmp_path).endswith('run: pip install "hfcompress[energy]"')
    assert environment(1)["energy"] == energy() and energy().startswith("not measured: ")


def test_environment_tells_the_machine_but_not_whose_it_is():
    found = environment(2)
    assert found["threads"] == 2 and found["torch"] == torch.__version__ and found["cores"] >= 1
    said = json.dumps(found)
    assert platform.node() not in said and str(Path.home()) not in said and getpass.getuser() not in said


def test_a_speedup_counts_only_where_the_loss_that_the_run_allows_holds():
    worse = result().difference[0].model_copy(update={"engine": "onnxruntime", "value": -0.05})
    both = result(difference=[result().difference[0], worse])
    wanted = {"speedup": ">=6", "speedup_1": ">=6", "speedup_8": ">=12", "accuracy_drop": "<=0.02"}
    found = {line.name: line.measured for line in check(both, wanted)}
    assert (found["speedup"], found["speedup_1"], found["speedup_8"]) == pytest.approx((3, 3, 6)), "PyTorch alone"
    assert not any(line.met for line in check(both, wanted) if line.name.startswith("speedup"))
    free = {line.name: line.measured for line in check(both, {k: v for k, v in wanted.items() if "drop" not in k})}
    assert (free["speedup"], free["speedup_1"], free["speedup_8"]) == pytest.approx((6, 6, 12))
    assert check(both, {"speedup": ">=1", "accuracy_drop": "<=0.001"})[0].measured == 0, "no engine is left"
    with pytest.raises(MeasureError, match=r"require.speedup_3: this run timed nothing at that batch"):
        check(both, {"speedup_3": ">=1"})
    assert parse_requirement("speedup_8", ">=2", batches=[1, 8]).bound == 2
    with pytest.raises(RecipeError, match=r"require.speedup_16: no such number"):
        parse_requirement("speedup_16", ">=2", batches=[1, 8])


@pytest.mark.parametrize(
    "asked", [{"accuracy_ratio": ">=0.98"}, {"metric_ratio": ">=0.98"}, {"agreement": ">=0.9"}, {}]
)
def test_no_run_is_fast_enough_by_an_engine_whose_answers_are_not_good_enough(asked):
    rows = [Quality(engine="pytorch", metric="accuracy", value=0.89, examples=100),
            Quality(engine="onnxruntime", metric="accuracy", value=0.84, examples=100)]  # fmt: skip
    same = result().difference[0]
    worse = same.model_copy(update={"engine": "onnxruntime", "value": -0.06, "agreement": 0.5})
    ruined = result(compressed=result().compressed.model_copy(update={"quality": rows}), difference=[same, worse])
    found = {line.name: line for line in check(ruined, {"speedup": ">=6", **asked})}
    assert found.pop("speedup").measured == pytest.approx(3), "PyTorch alone"
    assert all(line.met for line in found.values())
    timed_only = check(result(difference=[same]), {"speedup": ">=6", **asked})
    assert timed_only[0].measured == pytest.approx(3 if asked else 6)


def test_statistics_at_their_edges():
    with pytest.raises(MeasureError, match="no examples"):
        paired_bootstrap(accuracy, np.array([]), np.array([]), np.array([]))
    p, q = np.array([[0.0, -np.inf]]), np.array([[0.0, -np.inf], [0.0, 0.0]])
    assert kl_divergence(p, q[:1]) == 0 and kl_divergence(p, q[1:]) == pytest.approx(np.log(2))


DAMAGED = [
    ('{"title": "x"}', "created: this key is required."),
    ('{"title": "x", "cre', "invalid JSON: "),
    ('{"created": "' + 500 * "z" + '", "seed": "' + 500 * "z" + '"}', "title: this key is required."),
    (b"\xff\xfe{}", "it is not UTF-8 text."),
    ("[]", "expected a mapping of keys to values (got [])."),
]


@pytest.mark.parametrize(("text", "said"), DAMAGED, ids=[said.split()[0] for _, said in DAMAGED])
def test_a_damaged_result_is_told_in_a_line_with_what_to_do(text: str | bytes, said: str, tmp_path: Path):
    (tmp_path / "result.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MeasureError) as caught:
        read_result(tmp_path)
    words = str(caught.value)
    assert f"not a result of this package: {said}" in words and len(words.splitlines()) == 1
    assert len(words) - len(str(tmp_path)) < 400
    assert words.endswith("Measure again with `hfcompress run … --resume`, or leave this folder out.")


def test_a_damaged_record_is_told_in_a_line_with_what_to_do(tmp_path: Path):
    (tmp_path / "suite.json").write_text('{"title": "x", "cells": [{"name": "a", "state": "lost"}]}')
    with pytest.raises(MeasureError) as caught:
        read_suite(tmp_path)
    words = str(caught.value)
    assert "is not the record of a comparison: cells.0.model: this key is required. Run `hfcompress compare`" in words
    assert len(words.splitlines()) == 1 and words.endswith("or leave this one out.")
