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
from hfcompress.export.calibrate import calibrated, open_layers
from hfcompress.export.cpu import needs_reduced_range
from hfcompress.export.inputs import example_inputs
from hfcompress.export.kernels import kernels
from hfcompress.export.onnx import export_onnx
from hfcompress.export.runtime import ENGINES, require_engine
from hfcompress.export.trace import trace
from hfcompress.export.weights import layer_of
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


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT in 8 bits, and its files for every engine that is installed, from one tracing."""
    model, folder = packed("bert", Grid(8)), tmp_path_factory.mktemp("bert")
    installed = [e for e in (STATIC, "openvino", "openvino-int8") if not missing(e)]
    return model, export_onnx(model, folder, engines=installed, calibration=examples(model))


def missing(engine: str) -> bool:
    try:
        require_engine(engine)
    except ExportError:
        return True
    return False


def test_static_int8_gets_its_grids_from_examples(bert):
    model, files = bert
    file = files[STATIC]
    assert file.parts[-2:] == ("onnx", "model_static_quantized.onnx")
    kinds = {node.op_type for node in onnx.load(file).graph.node}
    assert "QuantizeLinear" in kinds and not {"DynamicQuantizeLinear", "MatMulInteger"} & kinds
    assert re.search(r"activations int8, static \(\d+\)$", ENGINES[STATIC].note(file))
    assert 0 < error(model, ENGINES[STATIC].run(file, 1)) < 0.15


@pytest.mark.slow
def test_a_grid_follows_the_examples():
    model = make("vit")
    traced = trace(model, None, 20)
    assert open_layers(traced)
    few, all_ = (calibrated(traced, found).layers for found in (examples(model, 1), examples(model)))
    path = open_layers(traced)[0]
    assert all_[path].inputs.bits == 8 and all_[path].inputs.step != few[path].inputs.step
    assert not open_layers(calibrated(traced, examples(model, 1)))
    seen = []
    plain = traced.plain.get_submodule(f"model.{path}")
    plain.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    traced.plain(*map(torch.from_numpy, examples(model)[0].values()))
    low, high = all_[path].inputs.span
    assert low - 1e-3 <= seen[0].quantile(0.02) and seen[0].quantile(0.98) <= high + 1e-3


@pytest.mark.slow
def test_weights_with_several_scales_a_row_stay_dynamic(tmp_path):
    model = packed("bert", Grid(4, group_size=16))
    note = exported(model, tmp_path, STATIC, calibration=examples(model))[2]
    assert "dynamic (" in note and "static (" not in note


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert status == 0 and "Wrote" in printed and "no tokenizer" in printed, errors
    status, _, errors = command("export", tmp_path / "model", "--format", "gptq", "--output", tmp_path / "out")
    assert status == 2 and "not empty" in errors
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


GRIDS = [Grid(8), Grid(8, False), Grid(4), Grid(4, False, 16), Grid(4, True, 24), Grid(2), Grid("ternary"), Grid(1)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_weight_in_few_bits_is_what_the_layer_computes_with(openvino, grid, tmp_path):
    from hfcompress.export.openvino import constant

    layer = torch.nn.Linear(64, 48)
    model = torch.nn.Sequential(layer)
    pack_(model, "0", grid)
    weight = layer_of("0", "0", model[0]).weight
    x = openvino.opset13.parameter([-1, 64], np.float32)
    graph = openvino.Model([openvino.opset13.matmul(x, constant(weight), False, True)], [x])
    openvino.save_model(graph, tmp_path / "m.xml", compress_to_fp16=False)
    run = openvino.Core().compile_model(tmp_path / "m.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    wanted = model[0].dequantized().numpy()
    np.testing.assert_allclose(run([np.eye(64, dtype=np.float32)])[0].T, wanted, rtol=1e-5, atol=1e-6)
    bits = 8 if grid.bits == 8 else 4
    scales = wanted.size // (grid.group_size or 64) * (2.5 + 4 * (64 % (grid.group_size or 64) > 0))
    assert file_bytes(tmp_path / "m.xml") <= 72 / 64 * wanted.size * bits / 8 + scales + 256


def test_openvino_computes_the_model(openvino, bert):
    model, files = bert
    file = files["openvino"]
    assert file.parts[-2:] == ("openvino", "openvino_model.xml")
    assert ENGINES["openvino"].note(file) == "weights 8-bit; tables 8-bit; computed in float32"
    pairs = {f"{n}.{s}" for n in ("openvino_model", "openvino_model_qint8_quantized") for s in ("xml", "bin")}
    assert {f.name for f in file.parent.iterdir()} == pairs
    assert "/tmp" not in file.read_text() and str(file.parent) not in file.read_text()
    assert error(model, ENGINES["openvino"].run(file, 1)) < 1e-5


def test_openvino_int8_from_examples(openvino, bert):
    model, files = bert
    file = files["openvino-int8"]
    assert "FakeQuantize" in file.read_text() and "static (" in ENGINES["openvino-int8"].note(file)
    assert (
        0 < error(model, ENGINES["openvino-int8"].run(file, 1)) < (0.4 if needs_reduced_range() else 0.3)
    )  # 7 bits a weight where 8 would saturate
    assert "FullyConnected i8" in kernels(file)


@pytest.mark.parametrize("name", ["vit", "llama"])
def test_openvino_for_images_and_language_models(openvino, name, tmp_path):
    model = packed(name, Grid(4, False, 16) if name == "llama" else None)
    assert error(model, exported(model, tmp_path, "openvino")[1]) < 1e-5


def test_openvino_int8_takes_the_grids_of_the_checkpoint(openvino, tmp_path):
    model = make("bert")
    batches = [{k: torch.from_numpy(v) for k, v in e.items()} for e in examples(model)]
    model = compress(model, SmoothQuantConfig(), calibration=batches)
    file, run, _ = exported(model, tmp_path, "openvino-int8")  # no examples given
    assert error(model, run) < (0.06 if needs_reduced_range() else 0.02)  # 7 bits a weight where 8 would saturate
    assert "FullyConnected i8" in kernels(file)


def test_a_failing_openvino_export_leaves_the_old_pair(openvino, tmp_path, monkeypatch):
    from hfcompress.export.files import writing_pair

    file = tmp_path / "openvino" / "m.xml"
    for text in ("old", "new"):
        with writing_pair(file) as xml:
            xml.write_text(text)
            xml.with_suffix(".bin").write_text(f"{text} weights")
    with pytest.raises(ValueError), writing_pair(file) as xml:
        xml.write_text("broken")
        raise ValueError
    assert (file.read_text(), file.with_suffix(".bin").read_text()) == ("new", "new weights")
    assert len(list(file.parent.iterdir())) == 2
    monkeypatch.setattr("hfcompress.export.agreement.TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="the openvino export disagrees"):
        exported(make("vit"), tmp_path / "other", "openvino")
    assert list((tmp_path / "other").iterdir()) == []


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
