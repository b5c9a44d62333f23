"""`hfcompress bench` on models of any kind: folders, models without a head, and bare ONNX files."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from test_run import command  # noqa: F401 - a fixture
from tiny import make
from transformers import BertModel

from hfcompress.checkpoint import save_checkpoint
from hfcompress.core.errors import ExportError, MeasureError
from hfcompress.export import notes
from hfcompress.export.cpu import needs_reduced_range
from hfcompress.export.inputs import example_inputs
from hfcompress.export.onnx import export_onnx
from hfcompress.export.runtime import Source, open_engine, open_onnx
from hfcompress.measure import bench as bench_module
from hfcompress.measure import exported
from hfcompress.measure.batches import write_batches
from hfcompress.measure.bench import Settings, describe, stale_engines
from hfcompress.measure.onnx_file import describe_onnx, read_onnx
from hfcompress.measure.workloads import Shape
from hfcompress.run import benching

TEXT = "AutoModelForSequenceClassification"
TOKENS, WIDTH = 50, 600


def write_file(file, batch="batch", length="length", *more: str):
    """Write a classifier as another tool might: ids in int32, an output of another name, weights beside the file."""
    table = np.arange(TOKENS * WIDTH, dtype=np.float32).reshape(TOKENS, WIDTH)
    names = ("input_ids", *more)
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, [batch, length]) for name in names]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["scores"], keepdims=0),
    ]
    stored = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axis")]
    out = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, WIDTH])
    graph = helper.make_graph(nodes, "g", inputs, [out], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    return file


def test_a_file_is_read_weighed_and_run(tmp_path):
    file = write_file(tmp_path / "m.onnx")
    found = read_onnx(file)
    assert (found.spec.names, found.spec.vocab_size, found.batch, found.length) == (("input_ids",), TOKENS, None, None)
    told = describe_onnx(file)
    assert set(told.files) == {"m.onnx", "weights.bin"} and told.size_bytes > 4 * TOKENS * WIDTH
    assert (told.parameters, told.nonzeros) == (TOKENS * WIDTH, TOKENS * WIDTH - 1)
    made = open_onnx(file, 1)({"input_ids": np.array([[1, 2]])})
    assert made[0, 0] == 3 * WIDTH
    fixed = read_onnx(write_file(tmp_path / "fixed.onnx", 1, 8))
    fixed.check(file, 1, 8)
    with pytest.raises(MeasureError, match=r"m.onnx takes a length of 8 only \(got 32\)"):
        fixed.check(file, 1, 32)
    with pytest.raises(MeasureError, match="takes input_ids, past"):
        read_onnx(write_file(tmp_path / "other.onnx", 1, 8, "past"))
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(MeasureError, match="cannot be read as an ONNX file"):
        read_onnx(tmp_path / "text.onnx")


def test_models_are_called_by_what_was_given(tmp_path):
    for name in ("a", "b"):
        make("bert").save_pretrained(tmp_path / name / "model")
    for name in ("a", "b", "b/model"):
        assert list(benching._names([str(tmp_path / name)]).values()) == [Path(name).name]
    runs = {str(tmp_path / name / "model"): name for name in ("a", "b")}
    assert benching._names([str(tmp_path / name) for name in ("a", "b")]) == runs
    assert list(benching._names(list(runs)).values()) == list(runs), "two of one name are told apart by their folders"


@pytest.mark.slow
def test_the_tables_of_our_own_files_are_seen(tmp_path):
    for name, vocabulary, engines in (("bert", 99, ["onnxruntime", "onnxruntime-w4"]), ("vit", 0, ["onnxruntime"])):
        for file in export_onnx(make(name), tmp_path / name, engines=engines).values():
            spec = read_onnx(file).spec
            assert (spec.vocab_size, spec.is_image) == (vocabulary, name == "vit")
            assert spec.image_size == ((16, 16) if spec.is_image else (0, 0))


@pytest.mark.slow
def test_bench_times_a_folder_against_a_file_on_several_threads(command, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(benching, "Settings", partial(Settings, seconds=0.1))
    make("bert").save_pretrained(tmp_path / "base")
    file = write_file(tmp_path / "m.onnx")
    asked = ("--shape", "1x8", "--engine", "onnxruntime-w8", "--engine", "onnxruntime", "--rounds", "1")
    status, printed, errors = command("bench", tmp_path / "base", file, *asked, "--threads", "1", "--threads", "2",
                                      "--json", tmp_path / "rows.json")  # fmt: skip
    assert status == 0, errors
    said = " ".join(printed.split())
    assert "1 thread " in said and "2 threads " in said
    assert said.count("m.onnx not in onnxruntime-w8: an ONNX file is timed as it is, in onnxruntime") == 2
    found = json.loads((tmp_path / "rows.json").read_text())
    rows = [(row["threads"], row["model"], row["engine"], row["batch"], row["length"]) for row in found["rows"]]
    each = (("base", "onnxruntime-w8"), ("base", "onnxruntime"), ("m.onnx", "onnxruntime"))
    assert rows == [(threads, *one, 1, 8) for threads in (1, 2) for one in each]
    assert all(row["p50_ms"] > 0 and row["load_seconds"] > 0 for row in found["rows"])
    ratios = [(row["ratio_same_engine"], row["ratio_first_in_pytorch"]) for row in found["rows"][:3]]
    assert ratios[:2] == [(None, None)] * 2 and ratios[2][0] > 0
    assert [line["engine"] for line in found["skipped"]] == ["onnxruntime-w8"] * 2 and found["environment"]["cores"]
    status, _, errors = command("bench", file, "--engine", "pytorch")
    assert status == 2 and "no model runs in pytorch" in errors
    status, _, errors = command("bench", tmp_path / "missing.onnx", "--engine", "onnxruntime")
    assert status == 2 and "missing.onnx is not a file" in errors


def arrays(inputs):
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@pytest.mark.slow
def test_a_model_without_a_head_gives_its_last_hidden_state(tmp_path):
    model = BertModel(make("bert").config).eval()
    model.save_pretrained(tmp_path)
    file = export_onnx(model, tmp_path, engines=["onnxruntime"])["onnxruntime"]
    assert [o.name for o in onnx.load(file).graph.output] == ["last_hidden_state"]
    inputs = {"input_ids": np.arange(8).reshape(1, 8)}
    found = [open_engine(name, Source(str(tmp_path)), 1, "AutoModel")(inputs) for name in ("pytorch", "onnxruntime")]
    assert found[0].shape == (1, 8, 32)
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_an_export_is_used_again_only_while_it_is_what_the_files_would_give(tmp_path, monkeypatch):
    model, folder = make("bert"), tmp_path / "model"
    engines = ("onnxruntime", "onnxruntime-static-int8", *(["openvino"] if find_spec("openvino") else []))
    save_checkpoint(model, folder)
    for name in ("these", "others"):
        write_batches(tmp_path / name, [arrays(example_inputs(model, 1, 5, seed=n + len(name))) for n in range(4)])
    source = Source(str(folder), calibration=str(tmp_path / "these"))
    settings = Settings(TEXT, [Shape(1, 8)], engines=("pytorch", *engines))
    assert stale_engines(source, settings) == list(engines), "there are none"
    describe(source, settings)
    exports = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    weights, config = folder / "model.safetensors", folder / "config.json"
    for file in (weights, config):
        os.utime(file, (2e9, 2e9))
    describe(source, settings)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*")} == exports, "a time alone says nothing"
    assert stale_engines(replace(source, calibration=None), settings) == [], "what they were calibrated on is not known"
    assert stale_engines(replace(source, calibration=str(tmp_path / "others")), settings) == ["onnxruntime-static-int8"]
    for file, old, new in ((weights, weights.read_bytes(), None), (config, config.read_bytes(), b'"relu"')):
        file.write_bytes(old[:-4] + b"\0\0\0\1" if new is None else old.replace(b'"gelu"', new))
        os.utime(file, (1, 1))  # as a copy that keeps the times of another checkpoint
        assert stale_engines(source, settings) == list(engines), file.name
        file.write_bytes(old)
    assert stale_engines(source, settings) == []
    assert stale_engines(replace(source, image_size=24), settings) == list(engines)
    with monkeypatch.context() as patch:
        patch.setattr(exported, "needs_reduced_range", lambda: not needs_reduced_range())
        assert stale_engines(source, settings) == list(engines)
    with monkeypatch.context() as patch:
        patch.setattr(notes, "__version__", "0.0.1")
        assert stale_engines(source, settings) == list(engines)
    (folder / "onnx/model_static_quantized.onnx").write_bytes(b"cut")
    file = folder / "onnx/model.onnx"
    proto = onnx.load(file)
    del proto.metadata_props[1:]  # as versions without a record wrote it
    onnx.save(proto, file)
    assert stale_engines(source, settings) == list(engines[:2])


def test_an_engine_a_model_cannot_be_exported_to_is_left_out_only_if_nobody_named_it(tmp_path, monkeypatch):
    make("bert").save_pretrained(tmp_path)
    monkeypatch.setattr(bench_module, "_export", lambda *_: (_ for _ in ()).throw(ExportError("no such operator")))
    settings = partial(Settings, TEXT, [], engines=("pytorch", "onnxruntime"))
    source = Source(str(tmp_path))
    described, found = bench_module._described(source, settings(lenient=True), None)
    assert list(described.runs_in) == ["pytorch"] and found.skips == {"onnxruntime": "no such operator"}
    with pytest.raises(ExportError, match="no such operator"):
        bench_module._described(source, settings(), None)


def test_each_model_is_loaded_by_a_class_of_its_own(tmp_path):
    model = make("bert")
    model.save_pretrained(tmp_path / "head")
    model.bert.save_pretrained(tmp_path / "none")
    sources = [benching._source(str(tmp_path / name)) for name in ("head", "none")]
    assert [source.auto_class for source in sources] == [TEXT, "AutoModel"]
    with torch.inference_mode():
        made = open_engine("pytorch", sources[1], 1, TEXT)({"input_ids": np.arange(4)[None]})
    assert made.shape == (1, 4, 32)
