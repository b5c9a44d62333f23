"""The card: metadata the Hub accepts, every number from the result and from nowhere else, code that runs."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from hub_server import metadata_errors
from huggingface_hub import ModelCard
from PIL import Image
from rich.console import Console
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hfcompress.core.errors import HFCompressError, MeasureError, PublishError
from hfcompress.measure.environment import OPTIMUM
from hfcompress.measure.result import (
    ClassRow,
    Difference,
    LatencyRow,
    McNemar,
    Method,
    ModelResult,
    Part,
    Quality,
    Requirement,
    Result,
    Source,
    Speedup,
    StageRecord,
)
from hfcompress.publish import canvas, rows
from hfcompress.publish.card import metadata, render_card, write_card
from hfcompress.publish.figures import FIGURE, draw, write_figure
from hfcompress.publish.layers_figure import draw_layers, layer_rows
from hfcompress.publish.pareto import PARETO, Point, draw_pareto, frontier
from hfcompress.publish.snippet import fastest_onnx, fastest_where, loading_snippet, onnx_snippet
from hfcompress.publish.verify import run_snippet
from hfcompress.run.inspect_bars import layer_bars

MINUS = "−"


def latency(engine: str, batch: int, size: int, p50_ms: float, *, image: bool = False) -> LatencyRow:
    return LatencyRow(
        engine=engine,
        batch=batch,
        length=None if image else size,
        image_size=size if image else None,
        threads=2,
        rounds=9,
        p50_ms=p50_ms,
        p90_ms=1.1 * p50_ms,
        throughput_per_s=1000 * batch / p50_ms,
    )


def model_result(name: str, size_bytes: int, times: dict[tuple[str, int, int], float], *, image: bool) -> ModelResult:
    share = size_bytes / 90_867_336
    return ModelResult(
        name=name,
        size_bytes=size_bytes,
        files={"model.safetensors": size_bytes},
        exports={"onnx/model.onnx": size_bytes + 800_000, "onnx/model_quantized.onnx": size_bytes // 3},
        parameters=int(22_713_986 * share),
        nonzeros=int(22_713_000 * share),
        flops={"1x224": int(1.2e9 * share)} if image else {"1x32": int(6.8e8 * share), "8x128": int(2.8e9 * share)},
        quality=[
            Quality(engine="pytorch", metric="accuracy", value=0.8784 if share > 0.9 else 0.8704, examples=872),
            Quality(engine="onnxruntime-int8", metric="accuracy", value=0.875 if share > 0.9 else 0.8716, examples=872),
        ],
        latency=[latency(engine, batch, size, ms, image=image) for (engine, batch, size), ms in times.items()],
        peak_memory_bytes={"pytorch": int(4e8 + 3 * size_bytes), "onnxruntime-int8": int(1e8 + size_bytes)},
        load_seconds={"pytorch": 1e-8 * size_bytes},
    )


def speedups(before: ModelResult, after: ModelResult) -> list[Speedup]:
    return [
        Speedup(
            engine=fast.engine,
            baseline_engine=slow.engine,
            batch=fast.batch,
            length=fast.length,
            image_size=fast.image_size,
            ratio=slow.p50_ms / fast.p50_ms,
        )
        for slow in before.latency
        for fast in after.latency
        if slow.shape == fast.shape
    ]


def make_result(*, image: bool = False, **changes: object) -> Result:
    """Return a result with every field filled, as of a text model or an image model."""
    shapes = [(1, 224), (16, 224)] if image else [(1, 32), (8, 128)]
    slow = dict.fromkeys(shapes)
    slow = {(engine, *shape): ms * f for engine, f in (("pytorch", 1.0), ("onnxruntime-int8", 0.61))
            for shape, ms in zip(shapes, (6.13, 145.2), strict=True)}  # fmt: skip
    fast = {key: ms / (3.17 if key[0] == "pytorch" else 4.4) for key, ms in slow.items()}
    fast["onnxruntime", *shapes[0]] = 1.83
    before = model_result("org/base", 90_867_336, slow, image=image)
    after = model_result("compressed", 11_193_640, fast, image=image)
    task = "image-classification" if image else "text-classification"
    fields: dict[str, object] = {
        "title": "MiniLM-L6 for SST-2 | small",
        "created": "2026-01-02T03:04:05Z",
        "task": task,
        "auto_class": "AutoModelForImageClassification" if image else "AutoModelForSequenceClassification",
        "loads_with": "hfcompress",
        "base_model": Source(id="org/base-model", hub=True, revision="abc123"),
        "dataset": Source(id="stanfordnlp/sst2", hub=True, config="default", split="validation"),
        "methods": [
            Method(
                name="movement",
                title="Movement pruning",
                category="parameter pruning",
                papers=["Sanh et al. 2020, https://arxiv.org/abs/2005.07683", "Lagunas et al. 2021"],
            ),
            Method(name="distill", title="Knowledge distillation", category="knowledge distillation"),
            Method(name="quantize_weights", title="8-bit weights", category="parameter quantization"),
        ],
        "stages": [
            StageRecord(
                name="prune",
                methods={"movement": {"heads": 0.5, "start": 0.1}, "distill": {"temperature": 2.0}},
                train={"num_train_epochs": 5, "learning_rate": 1.5e-4},
                report={"movement": {"heads_left": 36.0, "units_left": 2304.0}, "distill": {}},
                seconds=812.4,
            ),
            StageRecord(name="quantize", methods={"quantize_weights": {"bits": 8}}, seconds=1.2),
        ],
        "baseline": before,
        "compressed": after,
        "control": Quality(engine="pytorch", metric="accuracy", value=0.8807, examples=872),
        "difference": [
            Difference(
                engine=engine, metric="accuracy", value=value, low=-0.0195, high=high, resamples=2000, examples=872,
                agreement=0.953,
            )
            for engine, value, high in (("pytorch", -0.0080, 0.0034), ("onnxruntime-int8", -0.0034, 0.0092))
        ],
        "speedup": speedups(before, after),
        "structure": {"bert.encoder.layer.0.intermediate.dense": {"kind": "linear", "out_features": 384}},
        "requirements": [Requirement(name="size_ratio", wanted=">=6", measured=8.1177, met=True)],
        "findings": ["The ONNX Runtime fp32 export is slower than PyTorch at 1 × 32."],
        "environment": {"cpu": "Some CPU", "threads": 2, "versions": {"torch": "2.13.0", "transformers": "5.23.0"}},
        "seed": 17,
        "recipe": "model: org/base-model\nstages:\n  - methods: {movement: {heads: 0.5}}  # ```\n",
        "overrides": ["seed=0"],
        "recipe_hash": "0123abcd" * 8,
    }  # fmt: skip
    return Result.model_validate(fields | changes)


def write_run(folder: Path, result: Result) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(result.model_dump_json(), encoding="utf-8")
    return folder


def save_text_model(folder: Path) -> BertForSequenceClassification:
    """Save a tiny BERT with a tokenizer of a few words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "warm", "funny", "film", ",", "."]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(folder)
    return model


def save_image_model(folder: Path) -> None:
    """Save a tiny ViT with its image processor."""
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)


def cells(card: str, name: str) -> list[str]:
    """Return the cells after the first of the one table row that starts with `name`."""
    found = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
    assert len(found) == 1, f"{len(found)} rows are called {name!r}"
    return [text.strip() for text in found[0].strip("|").split("|")[1:]]


def number(text: str) -> float:
    """Return the first number of a cell in plain units, prefixes applied."""
    found = re.match(r"([+−-]?[\d.]+)x?(?: ([kMGT])?(?:B|ms|$))?", text)
    assert found is not None, text
    factor = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(found[2] or "", 1.0)
    return float(found[1].replace(MINUS, "-")) * factor


def about(value: float) -> object:
    """Match a number that was printed with three digits, or two decimals."""
    return pytest.approx(value, rel=5.1e-3)


@pytest.mark.parametrize("image", [False, True])
def test_metadata_is_what_the_hub_accepts(image: bool) -> None:
    result = make_result(image=image)
    text = render_card(result, FIGURE, repo_id="user/small")
    assert metadata_errors(text) == []
    data = ModelCard(text).data
    assert (data.base_model, data["base_model_relation"]) == ("org/base-model", "quantized")
    assert (data.library_name, data.pipeline_tag, data.datasets) == ("transformers", result.task, ["stanfordnlp/sst2"])
    assert {"hfcompress", "compression", "movement", "distill", "parameter-pruning"} <= set(data.tags)
    assert data.license is None
    assert data.model_name == "small"
    values = {(r.metric_type, r.metric_name): r.metric_value for r in data.eval_results}
    assert values["accuracy", "Accuracy (PyTorch)"] == 0.8704
    assert values["accuracy", "Accuracy (ONNX Runtime int8)"] == 0.8716
    assert values["size_bytes", "Weight files (bytes)"] == 11_193_640
    assert sum(kind == "latency_p50_ms" for kind, _ in values) == len(result.compressed.latency)
    assert {(r.task_type, r.dataset_type, r.dataset_config, r.dataset_split) for r in data.eval_results} == {
        (result.task, "stanfordnlp/sst2", "default", "validation")
    }


def test_metadata_names_nothing_that_is_not_on_the_hub() -> None:
    result = make_result(base_model=Source(id="minilm-sst2"), dataset=Source(id="sst2", split="validation"))
    text = render_card(result)
    assert metadata_errors(text) == []
    data = metadata(result).to_dict()
    assert not {"base_model", "base_model_relation", "datasets", "model-index", "license"} & set(data)
    assert "huggingface.co/minilm-sst2" not in text
    assert "`minilm-sst2`" in text


@pytest.mark.parametrize("missing", [{"hub": False}, {"config": None}, {"split": None}])
def test_no_model_index_for_a_data_set_the_hub_cannot_find_again(missing: dict[str, object]) -> None:
    assert "model-index" in metadata(make_result()).to_dict()
    source = make_result().dataset.model_copy(update=missing)
    assert "model-index" not in metadata(make_result(dataset=source)).to_dict()


def test_relation_follows_the_categories() -> None:
    pruned = make_result(methods=[Method(name="movement", title="Movement", category="parameter pruning")])
    assert metadata(pruned).to_dict()["base_model_relation"] == "finetune"


@pytest.mark.parametrize("image", [False, True])
def test_every_number_of_the_table_comes_from_the_result(image: bool) -> None:
    result = make_result(image=image)
    card = render_card(result, FIGURE)
    before, after = result.baseline, result.compressed
    expected: dict[str, tuple[float, float]] = {
        "Weight files": (before.size_bytes, after.size_bytes),
        "Parameters": (before.parameters, after.parameters),
        "Parameters that are not zero": (before.nonzeros, after.nonzeros),
        "Peak memory of the process, PyTorch": (
            before.peak_memory_bytes["pytorch"],
            after.peak_memory_bytes["pytorch"],
        ),
        "From file to first output, PyTorch": (
            1000 * before.load_seconds["pytorch"],
            1000 * after.load_seconds["pytorch"],
        ),
    }
    for shape in after.flops:
        expected[f"FLOPs at {shape.replace('x', ' × ')}"] = before.flops[shape], after.flops[shape]
    for name in after.exports:
        expected[f"`{name}`"] = before.exports[name], after.exports[name]
    unit = "px" if image else "tokens"
    for row in before.latency:
        engine = {"pytorch": "PyTorch", "onnxruntime-int8": "ONNX Runtime int8"}[row.engine]
        twin = next(r for r in after.latency if (r.engine, r.shape) == (row.engine, row.shape))
        name = f"Latency p50, {row.shape[0]} × {row.shape[1]} {unit}, {engine}"
        expected[name] = row.p50_ms, twin.p50_ms
    for name, (old, new) in expected.items():
        shown_old, shown_new, shown_ratio = cells(card, name)
        assert number(shown_old) == about(old), name
        assert number(shown_new) == about(new), name
        assert number(shown_ratio) == about(old / new), name
        assert shown_ratio.endswith("faster" if name.startswith(("Latency", "From")) else "smaller")
    assert cells(card, "Accuracy (%), PyTorch") == [
        "87.84", "87.04", f"{MINUS}0.80 points (95% interval {MINUS}1.95 to +0.34)",
    ]  # fmt: skip
    only_after = cells(card, f"Latency p50, 1 × {224 if image else 32} {unit}, ONNX Runtime")
    assert only_after == ["–", "1.83 ms", "–"]
    shown = sum(line.startswith("| ") for line in card.split("## Before and after")[1].split("##")[0].splitlines())
    assert shown == len(expected) + 1 + 2 + 1 + 1  # the head, two metrics, one engine timed once, one more memory row


def test_headline_says_what_the_fast_engine_costs() -> None:
    result = make_result()
    text = render_card(result)
    head = text.split("# MiniLM-L6 for SST-2 | small")[1].split("##")[0]
    assert "weight files **8.12x smaller** (90.9 MB → 11.2 MB)" in head
    fastest = 6.13 / (6.13 * 0.61 / 4.4)
    assert f"**{fastest:.2f}x faster** at 1 × 32 tokens (ONNX Runtime int8 against the original in PyTorch)" in head
    assert f"**{MINUS}0.80 points (95% interval {MINUS}1.95 to +0.34)** in PyTorch" in head
    assert f"**{MINUS}0.34 points (95% interval {MINUS}1.95 to +0.92)** in ONNX Runtime int8" in head


def test_an_error_is_no_share_however_small() -> None:
    good = make_result()

    def losing(model, value):
        found = [
            q.model_copy(update={"metric": "loss", "higher_is_better": False, "value": value}) for q in model.quality
        ]
        return model.model_copy(update={"quality": found})

    lost = [d.model_copy(update={"metric": "loss", "higher_is_better": False, "value": 0.03}) for d in good.difference]
    result = make_result(
        baseline=losing(good.baseline, 0.85), compressed=losing(good.compressed, 0.88), difference=lost
    )
    assert rows.metric_name(result) == "Loss (lower is better)" and rows.metric(result, 0.85) == "0.85"
    assert rows.points(result, 0.03) == "+0.03"


def test_a_bad_result_is_told_in_plain_words() -> None:
    good = make_result()
    slow = [row.model_copy(update={"p50_ms": 2 * row.p50_ms}) for row in good.baseline.latency]
    worse = good.baseline.model_copy(update={"size_bytes": 181_734_672, "latency": slow})
    text = render_card(make_result(compressed=worse, speedup=speedups(good.baseline, worse)))
    assert "weight files **2.00x larger**" in text
    assert cells(text, "Latency p50, 1 × 32 tokens, PyTorch")[2] == "2.00x slower"
    assert cells(text, "Parameters")[2] == "unchanged"
    assert "smaller** (" not in text


def test_what_the_average_hides_is_shown_where_it_was_measured() -> None:
    old = make_result()
    assert "McNemar" not in render_card(old) and "rare classes were not looked at" in render_card(old)
    drops = {"cat": 9, "dog": 4, "fox": 1, "hen": 0, "owl": 0, "pig": -1, "yak": -6}
    head = old.difference[0].model_copy(
        update={
            "divergence": 0.01234,
            "mcnemar": McNemar(lost=14, gained=7, p_value=0.1892),
            "classes": [ClassRow(name=n, examples=50, before=40, after=40 - d) for n, d in drops.items()],
        }
    )
    quality = [q.model_copy(update={"calibration_error": 0.0312}) for q in old.baseline.quality]
    models = {k: getattr(old, k).model_copy(update={"quality": quality}) for k in ("baseline", "compressed")}
    text = render_card(make_result(difference=[head], **models))
    assert (
        "- Only the original is right on 14 examples, only the compressed model on 7 (exact McNemar test: p = 0.19)."
        in text
    )
    assert "0.0123 nats" in text and "3.1% before, 3.1% after" in text
    assert "3 of 7 lost some, most of all: `cat` 40 → 31 of 50; `dog` 40 → 36 of 50; `fox` 40 → 39 of 50." in text
    assert "Most gained: `yak` 40 → 46 of 50; `pig` 40 → 41 of 50." in text
    assert "rare classes" not in text


def test_limits_name_control_chance_and_findings() -> None:
    limits = render_card(make_result()).split("## Limits")[1].split("##")[0]
    assert f"reaches 88.07 accuracy; against it the compressed model stands at {MINUS}1.03 points" in limits
    assert "contains zero" in limits
    assert "The ONNX Runtime fp32 export is slower than PyTorch at 1 × 32." in limits
    assert "one seed (17)" in limits
    sure = make_result(
        control=None, difference=[make_result().difference[0].model_copy(update={"high": -0.001})], findings=[]
    )
    limits = render_card(sure).split("## Limits")[1].split("##")[0]
    assert "contains zero" not in limits
    assert "same training" not in limits


def test_what_was_done_is_all_there() -> None:
    result = make_result()
    text = render_card(result)
    for part in ("https://arxiv.org/abs/2005.07683", "Lagunas et al. 2021", "movement: {heads: 0.5, start: 0.1}",
                 "| movement | units_left | 2304 |", "quantize_weights: {bits: 8}", "seed=0", "`>=6`",
                 "| versions.torch | 2.13.0 |", "Some CPU", result.recipe_hash, "num_train_epochs: 5"):  # fmt: skip
        assert part in text, part
    assert f"````yaml\n{result.recipe.rstrip()}\n````" in text, "backticks in the recipe must not end its block"


def test_card_is_a_pure_function_of_the_result(tmp_path: Path) -> None:
    result = make_result()
    again = Result.model_validate_json(result.model_dump_json())
    assert render_card(again, FIGURE, repo_id="a/b") == render_card(result, FIGURE, repo_id="a/b")
    for name in ("one.png", "two.png"):
        write_figure(result, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_result_without_evaluation_gives_no_card() -> None:
    with pytest.raises(PublishError, match="needs an evaluated model"):
        render_card(make_result(difference=[]))


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("loads_with", ["transformers", "hfcompress"])
def test_the_code_in_the_card_is_the_snippet(image: bool, loads_with: str) -> None:
    result = make_result(image=image, loads_with=loads_with)
    local, published = render_card(result), render_card(result, repo_id="user/small")
    code = loading_snippet(result, "user/small")
    assert f"```python\n{code.rstrip()}\n```" in published
    assert f"```python\n{loading_snippet(result, './model').rstrip()}\n```" in local
    compile(code, "snippet", "exec")
    assert ("import hfcompress" in code) == (loads_with == "hfcompress")
    assert ("AutoImageProcessor" in code) == image
    assert result.auto_class in code
    onnx = onnx_snippet(result, "user/small", hub=True)
    assert onnx is not None
    compile(onnx, "snippet", "exec")
    assert 'hf_hub_download(location, "onnx/model_quantized.onnx")' in onnx
    assert onnx.rstrip() in published


def test_the_onnx_code_fetches_the_weights_that_lie_in_a_file_beside() -> None:
    model = make_result().compressed
    large = model.model_copy(update={"exports": model.exports | {"onnx/model_quantized.onnx_data": 3_000_000_000}})
    onnx = onnx_snippet(make_result(compressed=large), "user/name", hub=True, revision="tiny")
    assert onnx and 'hf_hub_download(location, "onnx/model_quantized.onnx_data", revision=revision)' in onnx
    compile(onnx, "card", "exec")
    untimed = make_result(compressed=large.model_copy(update={"latency": []}))
    assert fastest_onnx(untimed.compressed) != "onnx/model_quantized.onnx", "the smallest, weights beside it included"
    one = {"onnx/model.onnx": 1, "onnx/model.onnx_data": 3_000_000_000}
    alone = large.model_copy(update={"exports": one, "latency": []})
    assert "The ONNX file needs no PyTorch" in render_card(make_result(compressed=alone))


def test_the_onnx_code_runs_the_fastest_engine_timed_everywhere() -> None:
    result = make_result()
    small, large = "onnx/model_quantized.onnx", "onnx/model.onnx"
    assert fastest_onnx(result.compressed) == small  # the other one was timed at one shape only
    slow = [latency("onnxruntime-int8", 1, 32, 3.0), latency("onnxruntime-int8", 8, 128, 30.0)]
    fast = [latency("onnxruntime", 1, 32, 4.0), latency("onnxruntime", 8, 128, 20.0)]
    there = [q.model_copy(update={"engine": "onnxruntime"}) for q in result.compressed.quality[:1]]
    timed = {"latency": slow + fast, "quality": result.compressed.quality + there}
    timed = result.compressed.model_copy(update=timed)
    assert fastest_onnx(timed) == large
    said = "the fastest of the ONNX files over all that was timed (geometric mean), and at 8 × 128 tokens"
    assert fastest_where(timed) == said
    assert f"The code runs {said}." in render_card(result.model_copy(update={"compressed": timed}))
    assert fastest_where(timed.model_copy(update={"latency": fast})) == "the fastest of the ONNX files"
    assert fastest_onnx(timed.model_copy(update={"latency": []})) == small
    assert f'"{large}"' in onnx_snippet(result.model_copy(update={"compressed": timed}), "x", hub=True)


def test_optimums_classes_are_shown_where_they_could_be_imported() -> None:
    result = make_result()
    assert "optimum" not in onnx_snippet(result, "x", hub=True)
    known = result.model_copy(update={"environment": {**result.environment, OPTIMUM: "0.2.0"}})
    code = onnx_snippet(known, "x", hub=True)
    compile(code, "snippet", "exec")
    call = 'ORTModelForSequenceClassification.from_pretrained(location, subfolder="onnx", file_name='
    assert f'{call}"model_quantized.onnx")' in code


def test_no_export_no_onnx_code() -> None:
    result = make_result()
    bare = result.model_copy(update={"compressed": result.compressed.model_copy(update={"exports": {}})})
    assert onnx_snippet(bare, "x", hub=True) is None
    assert "onnxruntime.InferenceSession" not in render_card(bare)


def test_locations_are_quoted_as_python() -> None:
    place = 'a "strange"\\folder'
    namespace: dict[str, object] = {}
    line = next(line for line in loading_snippet(make_result(), place).splitlines() if line.startswith("location"))
    exec(line, namespace)
    assert namespace["location"] == place


def part(name: str, **changes: object) -> Part:
    fields = {"numbers": 1000, "nonzeros": 1000, "size_bytes": 4000, "bits": 32.0}
    return Part.model_validate({"name": name, **fields, **changes})


def with_layout() -> Result:
    """Return a result with parts: a block of fewer heads and bits, one that shares the first's weights, one gone."""
    result = make_result()
    before = [part("embeddings", tokens=99), *(part(f"block {i}", heads=12, units=1536, width=384) for i in range(3))]
    after = [
        part("embeddings", tokens=50, bits=8.0, size_bytes=1000),
        part("block 0", heads=7, units=336, width=384, bits=8.0, nonzeros=600, size_bytes=700, rank=4),
        part("block 1", heads=12, units=1536, width=384, numbers=0, size_bytes=0, bits=None, shares="block 0"),
    ]
    return result.model_copy(
        update={
            "baseline": result.baseline.model_copy(update={"layout": before}),
            "compressed": result.compressed.model_copy(update={"layout": after}),
        }
    )


def texts_of(figure: object) -> dict[str, list[object]]:
    """Return the extents of every text drawn, by what it says; ticks and annotations both."""
    figure.draw_without_rendering()
    drawn = [
        text
        for axis in figure.axes
        for text in (*axis.texts, axis._left_title, axis.xaxis.label, axis.yaxis.label, *axis.get_yticklabels())
        if (text.get_text() and axis.axison) or text in axis.texts
    ]
    found: dict[str, list[object]] = {}
    for text in drawn:
        found.setdefault(text.get_text(), []).append(text.get_window_extent())
    return found


def assert_readable(figure: object) -> None:
    """Check that no two texts lie on each other and none leaves the figure."""
    boxes = [box for found in texts_of(figure).values() for box in found]
    assert [(i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])] == []
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_figure_shows_each_number_and_no_two_texts_overlap() -> None:
    figure = draw(make_result())
    wanted = {"90.9 MB", "11.2 MB (8.12x smaller)", "6.13 ms", f"87.04 ({MINUS}0.80)", "1.83 ms", "original"}
    assert wanted <= set(texts_of(figure))
    assert_readable(figure)


def test_layers_show_what_is_left_shared_and_gone() -> None:
    result = with_layout()
    assert [row.name for row in layer_rows(result)] == ["embeddings", "block 0", "block 1", "gone"]
    figure = draw_layers(result)
    assert {"tokens", "heads", "FFN units", "bits", "not zero", "rank", "size"} <= set(texts_of(figure))
    assert {"50", "7", "336", "8", "60%", "as block 0", "700 B", "gone"} <= set(texts_of(figure))
    assert "channels" not in texts_of(figure), "a column in which nothing changed"
    assert_readable(figure)


def test_blocks_keep_the_numbers_of_the_original_where_the_run_tells_which_are_left() -> None:
    result = with_layout()
    kept = {"block0_kept": 0.0, "block1_kept": 1.0, "block2_kept": 1.0}
    stage = StageRecord(name="s", methods={}, report={"drop": kept, "other": {"x": 1.0}}, seconds=1)
    told = result.model_copy(update={"stages": [stage]})
    found = layer_rows(told)
    assert [row.name for row in found] == ["embeddings", "block 0, gone", "block 1", "block 2"]
    assert found[2].after is not None and found[2].after.heads == 7
    assert {"block 0, gone", "as block 1"} <= set(texts_of(draw_layers(told)))
    again = stage.model_copy(update={"report": {"drop": {"block0_kept": 0.0, "block1_kept": 1.0}}})
    only = result.compressed.model_copy(update={"layout": result.compressed.layout[:2]})
    twice = told.model_copy(update={"stages": [stage, again], "compressed": only})
    assert [row.name for row in layer_rows(twice)] == ["embeddings", "block 0, gone", "block 1, gone", "block 2"]
    console = Console(width=120, file=io.StringIO())
    console.print(layer_bars(told.baseline.layout, told.compressed.layout, told.stages))
    lines = [line.split("  ")[0].split(" │")[0].strip() for line in console.file.getvalue().splitlines()]
    assert [line for line in lines if line.startswith("block")] == ["block 0, gone", "block 1", "block 2"]


def test_the_frontier_is_what_no_other_run_beats() -> None:
    points = [Point("a", 1, 80), Point("b", 2, 79), Point("c", 3, 90), Point("d", 3, 85), Point("e", 9, 90)]
    assert [p.name for p in frontier(points)] == ["a", "c"]
    assert [p.name for p in frontier(points, higher_is_better=False)] == ["a", "b"]


def test_pareto_draws_runs_of_the_same_model_only(tmp_path: Path) -> None:
    result = make_result()
    other, foreign = make_result(seed=3), make_result(base_model=Source(id="org/other", hub=True))
    words = "\n".join(texts_of(draw_pareto(result, {"near": other, "foreign": foreign})))
    assert "1  near" in words and "foreign" not in words
    elsewhere = other.model_copy(update={"environment": {**other.environment, "cpu": "another"}})
    panels = [len(draw_pareto(result, {"near": run}).axes) for run in (other, elsewhere)]
    assert panels == [3, 2], "milliseconds of another processor stand beside none"
    run = write_run(tmp_path / "run", result)
    assert PARETO not in write_card(run, others={"foreign": foreign}).read_text(encoding="utf-8")
    assert f"]({PARETO})" in write_card(run, others={"near": other}).read_text(encoding="utf-8")
    assert f"]({PARETO})" in write_card(run).read_text(encoding="utf-8"), "the picture still lies there"


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours as WCAG defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"])
def test_colours_read_on_a_light_and_on_a_dark_page(page: str) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast(canvas.INK, page) > 4.1
    assert all(contrast(colour, page) > 3 for colour in (canvas.BEFORE, canvas.AFTER, canvas.BEST))


def test_write_card_puts_card_and_figure_beside_the_weights(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_result())
    path = write_card(run)
    assert path == run / "model" / "README.md"
    assert path.read_text(encoding="utf-8") == render_card(make_result(), FIGURE)
    with Image.open(run / "model" / FIGURE) as image:
        assert image.width > 600
        assert image.convert("RGBA").getpixel((2, 2))[3] == 0, "the page shows through"
        assert len(image.convert("RGBA").getcolors(1 << 24)) > 10
        assert "Software" not in image.info
    assert [p.name for p in (run / "model").iterdir() if p.name.startswith(".")] == []
    assert 'location = "user/small"' in write_card(run, "user/small").read_text(encoding="utf-8")


def test_a_card_published_without_its_model_is_written_where_it_lies(tmp_path: Path) -> None:
    run = write_run(tmp_path / "cards", make_result())
    (run / "README.md").write_text("old")
    assert write_card(run) == run / "README.md" and not (run / "model").exists()


def test_write_card_needs_a_result(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"no result at .*result\.json"):
        write_card(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"title": "x"}))
    with pytest.raises(MeasureError, match="not a result"):
        write_card(tmp_path)


def test_write_card_where_a_file_bars_the_way(tmp_path: Path) -> None:
    run = write_run(tmp_path, make_result())
    (run / "model").write_text("")
    with pytest.raises(HFCompressError, match="cannot write"):
        write_card(run)


def test_the_snippets_run_on_a_text_model_and_its_export(tmp_path: Path) -> None:
    model = save_text_model(tmp_path)
    save_onnx(tmp_path / "onnx" / "model_quantized.onnx", labels=3)
    prediction, logits = run_snippet(make_result(loads_with="transformers"), tmp_path).strip().splitlines()
    label, share = prediction.split()
    assert label in model.config.id2label.values()
    assert 1 / 3 <= float(share) <= 1
    assert re.fullmatch(r"\[\[[\d. ]+\]\]", logits)


def test_the_snippet_runs_on_an_image_model(tmp_path: Path) -> None:
    save_image_model(tmp_path)
    result = make_result(image=True, loads_with="hfcompress")
    result = result.model_copy(update={"compressed": result.compressed.model_copy(update={"exports": {}})})
    assert run_snippet(result, tmp_path).startswith("LABEL_")


def save_onnx(path: Path, labels: int) -> None:
    """Write an ONNX model that takes `input_ids` alone and gives logits of shape (batch, labels)."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["numbers"], to=kinds.FLOAT),
        helper.make_node("ReduceMean", ["numbers", "axes"], ["mean"], keepdims=1),
        helper.make_node("MatMul", ["mean", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input_ids", kinds.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, ["batch", labels])],
        [
            helper.make_tensor("axes", kinds.INT64, [1], [1]),
            helper.make_tensor("weight", kinds.FLOAT, [1, labels], [0.5] * labels),
        ],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_an_export_of_the_wrong_shape_does_not_go_out(tmp_path: Path) -> None:
    save_text_model(tmp_path)
    save_onnx(tmp_path / "onnx" / "model_quantized.onnx", labels=4)
    with pytest.raises(PublishError, match=r"shape \(1, 4\), but config.json promises \(1, 3\)"):
        run_snippet(make_result(loads_with="transformers"), tmp_path)


def test_a_model_that_answers_nan_does_not_go_out(tmp_path: Path) -> None:
    model = save_text_model(tmp_path)
    model.classifier.bias.data[1] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(PublishError, match="not finite"):
        run_snippet(make_result(loads_with="transformers"), tmp_path)


def test_a_failing_snippet_shows_its_error_and_sees_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(
        "hfcompress.publish.verify.loading_snippet",
        lambda *_: "import os\nraise SystemExit(f'token {os.environ.get(\"HF_TOKEN\")} seen')\n",
    )
    with pytest.raises(PublishError, match=r"loading code fails(.|\n)*token None seen"):
        run_snippet(make_result(), tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999 B"), (999.6e3, "1.00 MB"), (1234, "1.23 kB"), (90_867_336, "90.9 MB"), (123_456_789, "123 MB")],
)
def test_bytes_have_three_digits(value: float, text: str) -> None:
    assert rows.si(value, "B") == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(10, 1, "10.0x smaller"), (9.99, 1, "9.99x smaller"), (1, 3, "3.00x larger"), (5, 5, "unchanged"), (1, 0, "–")],
)
def test_ratios_turn_their_words(before: float, after: float, text: str) -> None:
    assert rows.change(before, after) == text
