"""Engines that round activations on fixed grids, and OpenVINO's: what is written, and that it computes the model."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from causal import make_causal
from project import text_project
from test_run import command  # noqa: F401 - a fixture
from tiny import make

from hfcompress import SmoothQuantConfig, compress
from hfcompress.checkpoint import save_checkpoint
from hfcompress.core.errors import ExportError
from hfcompress.export import runtime
from hfcompress.export.inputs import example_inputs
from hfcompress.export.onnx import export_onnx
from hfcompress.export.runtime import ENGINES, require_engine
from hfcompress.measure.bench import Settings, bench
from hfcompress.measure.result import read_result
from hfcompress.measure.workloads import Shape
from hfcompress.modules.packed import form_of, pack_
from hfcompress.ops.quantization import Grid

STATIC = "onnxruntime-static-int8"


def arrays(inputs):
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def examples(model, count=12):
    """Return single examples of several lengths."""
    image = model.main_input_name == "pixel_values"
    return [arrays(example_inputs(model, 1, None if image else 5 + n % 7, seed=n)) for n in range(count)]


def packed(name: str, grid: Grid | None) -> torch.nn.Module:
    model = make_causal(name) if name in ("gpt2", "llama") else make(name)
    paths = [path for path, module in model.named_modules() if form_of(module)]
    for path in paths if grid else ():
        if type(model.get_submodule(path)).__name__ in ("Linear", "Conv1D", "Embedding"):  # not packed with its tie
            pack_(model, path, grid)
    return model


def error(model, run, batch=3, length=9) -> float:
    inputs = example_inputs(model, batch, None if model.main_input_name == "pixel_values" else length, mask_zeros=True)
    with torch.inference_mode():
        wanted = model(**inputs).logits.numpy()
    return float(np.abs(run(arrays(inputs)) - wanted).max() / np.abs(wanted).max())


def exported(model, folder, engine, **more):
    file = export_onnx(model, folder, engines=[engine], **more)[engine]
    return file, ENGINES[engine].run(file, 1), ENGINES[engine].note(file)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_static_int8_gets_its_grids_from_examples(name, tmp_path):
    model = packed(name, Grid(8))
    file, run, note = exported(model, tmp_path, STATIC, calibration=examples(model))
    assert file == tmp_path / "onnx" / "model_static_quantized.onnx"
    kinds = {node.op_type for node in onnx.load(file).graph.node}
    assert "QuantizeLinear" in kinds and not {"DynamicQuantizeLinear", "MatMulInteger"} & kinds
    assert re.search(r"activations int8, static \(\d+\)$", note)
    assert 0 < error(model, run) < 0.15


def test_a_grid_from_examples_is_used_and_follows_them(tmp_path):
    model = make("bert")
    good = exported(model, tmp_path / "a", STATIC, calibration=examples(model))[1]
    narrow = [{**e, "input_ids": np.full_like(e["input_ids"], 7)} for e in examples(model, 3)]
    bad = exported(model, tmp_path / "b", STATIC, calibration=narrow)[1]
    assert error(model, good) < error(model, bad)


def test_weights_with_several_scales_a_row_stay_dynamic(tmp_path):
    model = packed("bert", Grid(4, group_size=16))
    note = exported(model, tmp_path, STATIC, calibration=examples(model))[2]
    assert "dynamic (" in note and "static (" not in note


def test_grids_of_the_checkpoint_are_taken_and_no_example_is_asked_for(tmp_path):
    model = make("bert")
    batches = [{k: torch.from_numpy(v) for k, v in e.items()} for e in examples(model)]
    model = compress(model, SmoothQuantConfig(), calibration=batches)
    _, run, _ = exported(model, tmp_path, STATIC)
    int8 = exported(model, tmp_path, "onnxruntime-int8")[1]
    inputs = arrays(example_inputs(model, 2, 9))
    assert np.array_equal(run(inputs), int8(inputs))


def test_missing_examples_are_asked_for_and_nothing_is_written(tmp_path):
    with pytest.raises(ExportError, match=r"static-int8 rounds activations on fixed grids.*--calibration RECIPE"):
        export_onnx(make("bert"), tmp_path, engines=[STATIC])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_engine_is_named_with_the_command_that_adds_it(monkeypatch):
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None if name == "nncf" else object())
    require_engine("openvino")
    with pytest.raises(ExportError, match=r'openvino-int8 needs nncf; run: pip install "hfcompress\[openvino\]"'):
        require_engine("openvino-int8")


def test_a_run_calibrates_on_its_training_split(command, tmp_path):  # noqa: F811
    benchmark = {
        "engines": ["pytorch", STATIC],
        "shapes": [{"batch": 1, "length": 8}],
        "seconds": 0.1,
        "calibration": 9,
    }
    recipe = text_project(tmp_path, benchmark=benchmark)
    status, _, errors = command("run", recipe, "--output", tmp_path / "out")
    assert status == 0, errors
    result = read_result(tmp_path / "out")
    assert "static (" in result.compressed.runs_in[STATIC] and "; kernels " in result.compressed.runs_in[STATIC]
    assert result.compressed.quality_in(STATIC) is not None
    bench_ = ("bench", tmp_path / "out", "--engine", STATIC, "--rounds", 1, "--shape", "1x8")
    assert command(*bench_)[0] == 0  # the file lies in the folder
    (tmp_path / "out" / "model" / "onnx" / "model_static_quantized.onnx").unlink()
    status, _, errors = command(*bench_)
    assert status == 2 and "--calibration RECIPE" in errors
    status, printed, errors = command(*bench_, "--calibration", recipe)
    assert status == 0 and "static" in printed, errors
    status, printed, errors = command("export", tmp_path / "out", "--format", "onnxruntime", "--output", tmp_path / "x")
    assert status == 0 and (tmp_path / "x" / "onnx" / "model.onnx").is_file(), errors


def test_gptq_from_the_command_line(command, tmp_path):  # noqa: F811
    model = packed("llama", None)
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            pack_(model, path, Grid(4, group_size=16))
    save_checkpoint(model, tmp_path / "model")
    status, printed, errors = command("export", tmp_path / "model", "--format", "gptq", "--output", tmp_path / "out")
    assert status == 0 and "Wrote" in printed, errors
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "gptq" and config["block_name_to_quantize"] == "model.layers"
    status, _, errors = command("export", tmp_path / "model", "--format", "gptq")
    assert status == 2 and "--output" in errors
    status, _, errors = command("export", tmp_path / "model", "--format", "gptqq")
    assert status == 2 and "Did you mean 'gptq'" in errors


# OpenVINO


@pytest.fixture
def openvino():
    pytest.importorskip("nncf")
    return pytest.importorskip("openvino")


def file_bytes(xml: Path) -> int:
    return xml.with_suffix(".bin").stat().st_size


GRIDS = [None, Grid(8), Grid(4), Grid(4, False, 16), Grid(2), Grid("ternary"), Grid(8, False)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_openvino_computes_the_model_and_stores_its_bits(openvino, grid, tmp_path):
    model = packed("bert", grid)
    file, run, note = exported(model, tmp_path, "openvino")
    assert file == tmp_path / "openvino" / "openvino_model.xml" and note.endswith("computed in float32")
    assert {f.name for f in file.parent.iterdir()} == {"openvino_model.xml", "openvino_model.bin"}
    assert str(tmp_path) not in file.read_text() and "/tmp" not in file.read_text()
    assert error(model, run) < 1e-5
    wide = file_bytes(exported(make("bert"), tmp_path / "plain", "openvino")[0])
    if grid is not None:
        assert file_bytes(file) < (0.45 if grid.bits == 8 else 0.35) * wide


@pytest.mark.parametrize("name", ["vit", "llama", "gpt2"])
def test_openvino_for_images_and_tied_language_models(openvino, name, tmp_path):
    model = packed(name, None)
    assert error(model, exported(model, tmp_path, "openvino")[1]) < 1e-5


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_openvino_int8_from_examples(openvino, name, tmp_path):
    model = packed(name, Grid(8))
    file, run, note = exported(model, tmp_path, "openvino-int8", calibration=examples(model))
    assert file.name == "openvino_model_qint8_quantized.xml" and "static (" in note
    assert "FakeQuantize" in file.read_text()
    assert 0 < error(model, run) < 0.3


def test_openvino_int8_takes_the_grids_of_the_checkpoint(openvino, tmp_path):
    model = make("bert")
    batches = [{k: torch.from_numpy(v) for k, v in e.items()} for e in examples(model)]
    model = compress(model, SmoothQuantConfig(), calibration=batches)
    file, run, _ = exported(model, tmp_path, "openvino-int8")  # no examples given
    assert error(model, run) < 0.02
    from hfcompress.export.kernels import kernels

    assert "FullyConnected i8" in kernels(file)


def test_a_failing_openvino_export_leaves_the_old_pair(openvino, tmp_path, monkeypatch):
    model = make("bert")
    file, _, _ = exported(model, tmp_path, "openvino")
    before = [f.read_bytes() for f in (file, file.with_suffix(".bin"))]
    monkeypatch.setattr("hfcompress.export.onnx.TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="the openvino export disagrees"):
        exported(make("bert"), tmp_path, "openvino")
    assert [f.read_bytes() for f in (file, file.with_suffix(".bin"))] == before
    assert len(list(file.parent.iterdir())) == 2


def test_bench_runs_openvino_in_a_worker(openvino, tmp_path):
    save_checkpoint(packed("bert", Grid(8)), tmp_path / "model")
    source = {"a": runtime.Source(str(tmp_path / "model"))}
    auto = "AutoModelForSequenceClassification"
    found = bench(source, Settings(auto, [Shape(1, 8)], engines=("openvino",), rounds=1, seconds=0.1)).models["a"]
    assert set(found.exports) == {"openvino/openvino_model.xml", "openvino/openvino_model.bin"}
    assert "; kernels FullyConnected f32 (" in found.runs_in["openvino"] and found.latency[0].p50_ms > 0


def test_optimums_classes_load_the_export(tmp_path):
    try:
        from optimum.onnxruntime import ORTModelForSequenceClassification
    except (ImportError, RuntimeError):
        pytest.skip("optimum's ONNX Runtime classes are not installed, or do not fit this transformers")
    model = packed("bert", Grid(8))
    save_checkpoint(model, tmp_path)
    export_onnx(model, tmp_path, engines=["onnxruntime"])
    loaded = ORTModelForSequenceClassification.from_pretrained(tmp_path, subfolder="onnx", file_name="model.onnx")
    inputs = example_inputs(model, 2, 9)
    assert torch.allclose(loaded(**inputs).logits, model(**inputs).logits, atol=1e-4)
