"""A whole run through the command line: what it leaves, its exit status, and taking it up again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from project import text_project
from safetensors.torch import load_file, save_file
from test_card import make_result
from tiny import LAYERS

from hfcompress import cli
from hfcompress.checkpoint import load_model
from hfcompress.measure.latency import Latency
from hfcompress.measure.opening import Opened
from hfcompress.measure.result import Difference, read_result
from hfcompress.recipe.load import load_recipe
from hfcompress.run import claims_files, claims_quality, claims_times, execute
from hfcompress.run.check import check_card, unchecked
from hfcompress.run.claims import Place, find_place
from hfcompress.run.claims_recipe import DONE, HASH, recipe_claims
from hfcompress.run.claims_text import EVALUATED, TEXT, text_claims
from hfcompress.run.claims_times import time_claims
from hfcompress.run.folder import RunFolder
from hfcompress.run.setup import open_recipe

INTERVALS = [
    (26.0, -0.02, True),
    (26.0, -0.05, True),  # within a tenth of its width
    (26.0, -0.06, False),
    (26.0, 0.01, False),  # it would tell the models apart
    (0.9, -0.017, True),  # of a share: three examples of a thousand
    (0.9, -0.016, False),
]

AUTO = "AutoModelForSequenceClassification"


def hfcompress(monkeypatch, capsys, *args: object) -> tuple[int, str, str]:
    """Run the command line in this process; returns (exit status, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["hfcompress", *map(str, args)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), " ".join(out.split()), " ".join(err.split())


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *args: hfcompress(monkeypatch, capsys, *args)


@pytest.mark.card_code
def test_a_run_from_recipe_to_card(command, tmp_path):
    benchmark = {"engines": ["pytorch", "onnxruntime-int8"], "shapes": [{"batch": 1, "length": 8}], "seconds": 0.1}
    recipe = text_project(tmp_path, benchmark=benchmark, require={"size_ratio": ">=2", "speedup": ">=0.01"})
    out = tmp_path / "out"
    status, printed, errors = command("run", recipe, "--output", out)
    assert status == 0, errors
    for word in ("before", "after", "ratio", "Weight files", "size_ratio >=2: met", str(out / "model" / "README.md")):
        assert word in printed
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    wanted = {"recipe.yaml", "plan.json", "log.jsonl", "result.json", "model/README.md", "model/tokenizer.json"}
    assert wanted | {"model/model.safetensors", "model/onnx/model_quantized.onnx"} <= files
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pth", ".pkl"))]
    result = read_result(out)
    plan = json.loads((out / "plan.json").read_text())
    planned = plan["stages"][-1]
    assert result.size_ratio > 2
    assert planned["parameters"] == pytest.approx(result.compressed.parameters, rel=0.05)  # up to rounding per layer
    assert abs(planned["weight_bytes"] - result.compressed.size_bytes) < 20_000
    assert [s.name for s in result.stages] == ["prune", "quantize_weights"]
    assert result.base_model.id == "base" and str(tmp_path) not in result.model_dump_json()
    assert load_model(out / "model", AUTO).config.model_type == "bert"
    _check_inspect_and_card(command, out)


def _check_inspect_and_card(command, out: Path) -> None:
    status, printed, _ = command("inspect", out)
    assert status == 0 and printed.count("bert.encoder.layer.") == LAYERS and "int8" in printed
    card = out / "model" / "README.md"
    before = card.read_bytes()
    card.unlink()
    assert command("card", out)[0] == 0 and card.read_bytes() == before
    _check_claims(command, out)


def _check_claims(command, out: Path) -> None:
    """A card holds as it was made, and no longer where it, the result, the weights or the examples were changed."""
    status, printed, _ = command("card", out, "--check", "--no-time")
    assert status == 0 and "differs" not in printed and printed.count("holds") >= 20 and "not checked" not in printed
    text = (out / "result.json").read_text()
    pushed = out.parent / "pushed"  # as a push leaves it: the result beside the weights, no examples
    shutil.copytree(out / "model", pushed)
    moved = text.replace('"overrides": []', '"overrides": ["data.path=data"]')
    (pushed / "result.json").write_text(moved)
    assert moved != text and _holds(pushed)["accuracy, PyTorch"] is None
    places = {"baseline": str(out.parent / "base"), "overrides": [f"data.path={out.parent / 'data'}"]}
    found = check_card(pushed, time=False, **places)  # its recipe no longer says where the original is
    unseen = {line.name for line in found if line.holds is None and line.name != HASH}
    assert unseen and all("ONNX" in name or "onnx" in name for name in unseen), "only the original's exports are gone"
    assert {line.name for line in found if line.holds is False} == {TEXT}, "its page does not tell of the override"
    words = f"{len(unseen) + 1} of {len(found)} claims could not be checked: "
    assert (
        unchecked(found).startswith(words)
        and "onnx/model_quantized.onnx of this model is not" in unchecked(found)
        and not unchecked([line for line in found if line.holds is not None])
    )
    (pushed / "result.json").write_text(text)
    weights = load_file(pushed / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, pushed / "model.safetensors", {"format": "pt"})
    status, printed, errors = command("card", pushed, "--check", "--no-time")
    assert status == 3 and "no longer holds" in errors and "claims could not be checked" in printed
    assert printed.count("differs") == 1 and "SHA-256 of model.safetensors" in printed
    shutil.rmtree(pushed)
    _check_what_is_falsified(out, text)


def _check_what_is_falsified(out: Path, text: str) -> None:
    """Each of these was told by no line once: now it is by one of its own, besides by those that follow from it."""
    card = out / "model" / "README.md"
    shown = card.read_text()
    card.write_text(shown.replace("x smaller**", "9x smaller**", 1))
    assert [line.name for line in text_claims(find_place(out, None, ())) if line.holds is False] == [TEXT]
    card.write_text(shown)
    changes = {
        "accuracy, PyTorch": lambda r: r["compressed"]["quality"][0].update(value=0.99),
        "original: accuracy, PyTorch": lambda r: r["baseline"]["quality"][0].update(value=0.99),
        "original: calibration error, PyTorch": lambda r: r["baseline"]["quality"][0].update(calibration_error=0.9),
        "original: bytes of all weights": lambda r: r["baseline"].update(size_bytes=10**9),
        "original: parameters": lambda r: r["baseline"].update(parameters=10**9),
        "FLOPs at 1x8": lambda r: r["compressed"]["flops"].update({"1x8": 1}),
        "heads, units, bits and bytes of each part": lambda r: r["compressed"]["layout"][1].update(heads=1),
        "difference of accuracy and its interval, PyTorch": lambda r: r["difference"][0].update(low=-0.9),
        "agreement, PyTorch": lambda r: r["difference"][0].update(agreement=0.1),
        "KL divergence, PyTorch": lambda r: r["difference"][0].update(divergence=9.0),
        "right in one model only, PyTorch": lambda r: r["difference"][0]["mcnemar"].update(lost=20),
        "p-value of its McNemar test, PyTorch": lambda r: r["difference"][0]["mcnemar"].update(p_value=1e-9),
        "right by class, PyTorch": lambda r: r["difference"][0]["classes"][0].update(before=99),
        "ratios of times are those of the times": lambda r: r["speedup"][-1].update(ratio=50.0),
        "what saved nothing is what its numbers say": lambda r: r["findings"].append("It is no faster on Mars."),
        "what `require` asked for was met": lambda r: r["requirements"][0].update(measured=9.0),
        "what that interval is of, PyTorch": lambda r: r["difference"][0].update(resamples=1),
        "original: weight files": lambda r: r["baseline"]["files"].update({"vocab.txt": 99}),
        "exported files": lambda r: r["compressed"]["exports"].clear(),
        "files with a SHA-256": lambda r: r["compressed"]["checksums"].clear(),
        "statistics of a classifier, ONNX Runtime int8": lambda r: r["difference"][1].update(mcnemar=None),
        "calibration error, PyTorch": lambda r: r["compressed"]["quality"][0].update(calibration_error=None),
        "the metric in every engine that was timed": lambda r: r["compressed"]["quality"].pop(),
        "model, data and metric are those of its recipe": lambda r: r["dataset"].update(split="train"),
        "stages are those of its recipe": lambda r: r["stages"][0]["methods"]["movement"].update(heads=0.9),
        "all is there that is asked for by its recipe": lambda r: r["baseline"]["quality"].pop(),
        "the hash is that of its recipe": lambda r: r.update(recipe_hash="0" * 64),
    }  # fmt: skip
    result = json.loads(text)
    for change in changes.values():
        change(result)
    (out / "result.json").write_text(json.dumps(result))
    found = _holds(out)
    (out / "result.json").write_text(text)
    assert {name: found[name] for name in changes} == dict.fromkeys(changes, False)
    assert found[TEXT] is False and found["parameters"] is True
    result = json.loads(text)
    result["stages"][0]["methods"]["movement"]["penalty"] = 5.0  # which the recipe leaves to a default
    (out / "result.json").write_text(json.dumps(result))
    (line,) = [line for line in recipe_claims(find_place(out, None, ()), ()) if line.name == DONE]
    (out / "result.json").write_text(text)
    assert line.holds is None and "left to defaults, which are others now" in line.found


def test_published_results_are_of_what_their_recipes_say():
    """Older ones too, whose defaults were others and which lack newer statistics."""
    for path in sorted(Path(__file__).parent.parent.glob("model_cards/*/result.json")):
        at = Place(read_result(path), RunFolder(path.parent), path.parent, None)
        wrong = [line for line in recipe_claims(at, ()) if line.holds is False]
        wrong += [line for line in text_claims(at) if line.holds is False and line.name == EVALUATED]
        assert not wrong, (path.parent.name, wrong)


def test_a_recipe_that_cannot_be_read_is_told_and_speaks_against_nothing(tmp_path):
    for recipe in ("", "model: x\nstages: 3\n"):
        at = Place(make_result(recipe=recipe, overrides=[]), RunFolder(tmp_path), tmp_path, None)
        assert {line.holds for line in recipe_claims(at, ())} == {None}


def test_every_weight_file_that_loads_is_counted_and_no_other(tmp_path):
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in (*names, "vocab.txt"):
        (tmp_path / name).write_bytes(b"1234")
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"12")

    def holds(names: list[str], *, checksums: bool = False, exports: int = 1) -> dict[str, bool | None]:
        told = {name: hashlib.sha256(b"1234").hexdigest() for name in names} if checksums else {}
        model = make_result().compressed.model_copy(
            update={
                "files": dict.fromkeys(names, 4),
                "size_bytes": 4 * len(names),
                "checksums": told,
                "exports": dict.fromkeys(["onnx/model.onnx"][:exports], 2),
            }
        )
        at = Place(make_result(compressed=model), RunFolder(tmp_path), tmp_path, None)
        lines = [*claims_files._files(at, "compressed", tmp_path), *claims_files._exports("", model, tmp_path)]
        return {line.name: line.holds for line in lines}

    assert set(holds(names).values()) == set(holds(names, checksums=True).values()) == {True}
    assert "files with a SHA-256" not in holds(names), "an older result has none"
    assert holds(names[:1])["weight files"] is holds(["vocab.txt"])["weight files"] is False
    assert holds(names, exports=0)[": exported files"] is False
    (tmp_path / names[1]).unlink()
    assert holds(names)["weight files"] is False


@pytest.mark.parametrize(("scale", "low", "holds"), INTERVALS)
def test_the_end_of_an_interval_may_not_come_to_tell_models_apart(scale: float, low: float, holds: bool):
    """A tolerance that is a share of the metric would let any small difference of a perplexity count as sure."""
    found = Difference(engine="pytorch", metric="x", value=0.1, low=-0.02, high=0.3, resamples=2, examples=1000,
                       agreement=1.0)  # fmt: skip
    assert claims_quality._interval_holds(found.model_copy(update={"low": low}), found, scale) is holds


def test_ratios_memory_and_loading_are_measured_again_against_any_engine(monkeypatch, tmp_path):
    result = make_result(control=None)
    before, after = result.baseline, result.compressed
    at = Place(result, RunFolder(tmp_path), tmp_path, str(tmp_path))
    waiting = 0.0

    def latency(*_, **__):
        return Latency({"original": before.latency, "compressed": after.latency}, waiting)

    opened = Opened.of(["original", "compressed"])
    opened.peak_bytes.update({"original": before.peak_memory_bytes, "compressed": {"pytorch": 1}})
    opened.load_seconds.update({"original": before.load_seconds, "compressed": {"pytorch": 99.0}})
    monkeypatch.setattr(claims_times, "measure_latency", latency)
    monkeypatch.setattr(claims_times, "measure_opening", lambda *_, **__: opened)
    found = {line.name: line.holds for line in time_claims(at, 0.25)}
    across = "times faster, 1 × 32 tokens, ONNX Runtime int8 against PyTorch"
    assert found[across] is found["original: peak memory, PyTorch"] is True
    assert found["peak memory, PyTorch"] is found["from file to first output, PyTorch"] is False
    false = [
        s.model_copy(update={"ratio": 50 * s.ratio}) if s.engine != s.baseline_engine else s for s in result.speedup
    ]
    lying = replace(at, result=result.model_copy(update={"speedup": false}))
    assert {line.name: line.holds for line in time_claims(lying, 0.25)}[across] is False
    waiting = 0.5
    busy = time_claims(at, 0.25)
    assert {line.name: line.holds for line in busy}[across] is None and "on a busy machine (" in unchecked(busy)


def _holds(folder: Path) -> dict[str, bool | None]:
    return {line.name: line.holds for line in check_card(folder, time=False)}


def test_an_unmet_requirement_is_status_3_and_the_model_is_kept(command, tmp_path):
    recipe = text_project(tmp_path, require={"size_ratio": ">=1000"})
    status, printed, _ = command("run", recipe, "--output", tmp_path / "out")
    assert status == 3 and "size_ratio >=1000: not met" in printed
    assert (tmp_path / "out" / "model" / "README.md").exists()


def test_the_control_gets_the_same_steps(command, tmp_path):
    recipe = text_project(tmp_path, evaluate={"control": True})
    assert command("run", recipe, "--output", tmp_path / "out")[0] == 0
    result = read_result(tmp_path / "out")
    assert result.control is not None and result.control.examples == 24
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    steps = {entry["stage"]: entry["step"] for entry in log if "train_runtime" in entry}
    assert steps["control 1"] == steps["prune"] == 12


@pytest.mark.slow
def test_a_control_cut_off_between_its_trainings_gets_the_rest_of_them(tmp_path, monkeypatch):
    train = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 0.01}
    stages = [{"name": name, "methods": {"distill": {}}, "train": train} for name in ("a", "b")]
    loaded = load_recipe(text_project(tmp_path, stages=stages, evaluate={"control": True}))
    trained, interrupt, train_ = [], [], execute.train

    def train_until(*given, title, **more):
        trained.append(title)
        if title in interrupt:
            raise KeyboardInterrupt
        return train_(*given, title=title, **more)

    execute.run_recipe(loaded, tmp_path / "whole", card=False)
    monkeypatch.setattr(execute, "train", train_until)
    interrupt.append("control 2")
    with pytest.raises(KeyboardInterrupt):
        execute.run_recipe(loaded, tmp_path / "out", card=False)
    interrupt.clear()
    execute.run_recipe(loaded, tmp_path / "out", resume=True, card=False)
    assert trained == ["control 1", "control 2", "control 2"]
    whole, resumed = (load_file(tmp_path / run / "control/model.safetensors") for run in ("whole", "out"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "out" / "control-parts").exists()


def test_the_control_of_adapters_trains_the_same_adapters_and_nothing_else(command, tmp_path):
    """Freed to move, a whole model would be trained at the adapters' learning rate: no control of anything."""
    train = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 0.01}
    stage = {"methods": {"lora": {"r": 2, "targets": ["re:.*query"]}, "distill": {}}, "train": train}
    recipe = text_project(tmp_path, stages=[stage], evaluate={"control": True})
    status, _, err = command("run", recipe, "--output", tmp_path / "out")
    assert status == 0, err
    before, after = (load_file(f / "model.safetensors") for f in (tmp_path / "base", tmp_path / "out" / "control"))
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"query"}


def test_a_plan_leaves_out_what_a_stage_selects_on(tmp_path):
    for more, steps in (({}, 12), ({"eval_strategy": "epoch"}, 11)):  # of 48 examples, 5 held out
        train = {"num_train_epochs": 1, "per_device_train_batch_size": 4, **more}
        recipe = text_project(tmp_path, stages=[{"methods": {"distill": {}}, "train": train}])
        assert open_recipe(load_recipe(recipe)).plan.stages[0].steps == steps


def test_fine_tuning_first_and_selecting_on_a_held_out_part(command, tmp_path):
    train = {"num_train_epochs": 1, "eval_strategy": "epoch", "load_best_model_at_end": True}
    recipe = text_project(tmp_path, finetune={"train": train})
    assert command("run", recipe, "--output", tmp_path / "out")[0] == 0
    assert read_result(tmp_path / "out").baseline.name == "base, fine-tuned"
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    (step,) = {e["step"] for e in log if e["stage"] == "fine-tuning" and "eval_accuracy" in e}
    assert step == 6  # 43 of 48 examples in batches of 8: the selection part is not trained on


def test_plan_trains_nothing(command, tmp_path):
    status, printed, _ = command("plan", text_project(tmp_path))
    assert status == 0
    for word in ("movement: 6", "distill: 1", "quantize_weights: 22", "one-shot", "× smaller", "48 examples"):
        assert word in printed
    assert {p.name for p in tmp_path.iterdir()} == {"vocab.txt", "base", "data", "recipe.yaml"}


def test_methods_lists_them_and_their_settings(command):
    assert "movement" in command("methods")[1]
    assert "score_learning_rate" in command("methods", "movement")[1]
    status, printed, _ = command("methods", "--schema")
    assert status == 0 and '"score_learning_rate"' in printed


def test_bench_training_reports_a_ratio(command, tmp_path):
    status, printed, errors = command("bench", "--training", text_project(tmp_path), "--rounds", "1")
    assert status == 0, errors
    assert "stock Trainer" in printed and "HFCompressTrainer / (stock + teacher)" in printed


def start(recipe: Path, out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "hfcompress.cli", "run", str(recipe), "--output", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def finish(child: subprocess.Popen) -> None:
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors


def test_ctrl_c_then_resume_ends_like_an_uninterrupted_run(command, tmp_path):
    recipe = text_project(tmp_path)
    slow = ("--set", "stages.0.train.num_train_epochs=24", "--set", "stages.0.train.save_strategy=no")
    assert (
        start(recipe, tmp_path / "whole", *slow).wait(timeout=300) == 0
    )  # all in processes of their own, set up alike
    child = start(recipe, tmp_path / "out", *slow)
    log, deadline = tmp_path / "out" / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and '"stage": "prune"' in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130, errors
    assert "--resume" in errors and "Traceback" not in errors
    assert list((tmp_path / "out" / "stages" / "0" / "trainer").glob("checkpoint-*"))
    finish(start(recipe, tmp_path / "out", "--resume", *slow))
    whole, resumed = (load_model(tmp_path / name / "model", AUTO).state_dict() for name in ("whole", "out"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    status, printed, _ = command("run", recipe, "--output", tmp_path / "out", "--resume", *slow)
    assert status == 0 and printed.count("done before") == 2


@pytest.mark.slow
@pytest.mark.card_code
def test_the_quickstart(command, tmp_path):
    recipe = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
    started = time.monotonic()
    status, printed, errors = command("run", recipe, "--output", tmp_path / "out", "--set", "benchmark.seconds=0.5")
    assert status == 0, printed + errors
    assert time.monotonic() - started < 600  # a bound against hanging, not a measurement
    result = read_result(tmp_path / "out")
    assert result.size_ratio >= 4 and result.compressed.quality_in("onnxruntime-int8").value > 0.9
