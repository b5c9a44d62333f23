"""Exports: what is written, that it computes what the model computes, and that a failure leaves nothing."""

import contextlib
import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny import as_written, make
from transformers import AutoModelForSequenceClassification

from hfcompress.core.errors import ExportError, MeasureError
from hfcompress.export import files, trace
from hfcompress.export.agreement import check
from hfcompress.export.inputs import example_inputs, is_image, spec_from, spec_of
from hfcompress.export.kernels import kernels
from hfcompress.export.onnx import export_onnx
from hfcompress.export.plain import plain_copy
from hfcompress.export.runtime import ENGINES, Source, open_engine, open_onnx
from hfcompress.export.weights import SMALL
from hfcompress.measure.exported import digests, stale
from hfcompress.measure.size import export_files
from hfcompress.modules.packed import pack_
from hfcompress.ops.quantization import Grid, quantize


def logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    with torch.inference_mode():
        return model(**inputs).logits.numpy()


def arrays(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.fixture(scope="module")
def bert() -> torch.nn.Module:
    """A BERT whose linear layers and word table lie on an int8 grid, as a compressed one does."""
    model = make("bert")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                module.weight.copy_(quantize(module.weight, Grid(8)).dequantize())
    return model


@pytest.fixture(scope="module")
def exported(bert, tmp_path_factory) -> dict[str, Path]:
    bert.save_pretrained(folder := tmp_path_factory.mktemp("model"))
    return export_onnx(bert, folder, reduce_range=False)  # the same file on any processor


def test_example_inputs_are_distinct_valid_and_masked():
    model = make("bert")
    inputs = example_inputs(model, 3, 8, mask_zeros=True)
    assert list(inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    assert len({tensor.data_ptr() for tensor in inputs.values()}) == 3
    assert (inputs["input_ids"] != model.config.pad_token_id).all() and inputs["input_ids"].max() < 99
    assert inputs["attention_mask"][0].all() and (inputs["attention_mask"].sum(1) > 0).all()
    assert (inputs["attention_mask"][1:].min(1).values == 0).all()
    assert (example_inputs(model, 1, 8, mask_zeros=True)["attention_mask"] == 0).any()
    assert example_inputs(model, 2, 8)["attention_mask"].all()
    assert torch.equal(inputs["input_ids"], example_inputs(model, 3, 8)["input_ids"])
    assert not is_image(model)


def test_inputs_follow_what_each_family_takes():
    distilbert, roberta = make("distilbert"), make("roberta")
    roberta.config.type_vocab_size = 1
    assert spec_of(distilbert).names == spec_of(roberta).names == ("input_ids", "attention_mask")
    assert spec_of(roberta).max_length == 38
    roberta(**example_inputs(roberta, 1, 38))
    with pytest.raises(ExportError, match="length 39 is more than the 38 tokens"):
        example_inputs(roberta, 1, 39)
    vit = make("vit")
    assert example_inputs(vit, 2)["pixel_values"].shape == (2, 3, 16, 16)
    assert example_inputs(vit, 2, image_size=24)["pixel_values"].shape == (2, 3, 24, 24)
    bare = spec_from(SimpleNamespace(model_type="timm_wrapper"), type(vit))  # says neither channels nor pixels
    assert (bare.channels, bare.image_size) == (3, (224, 224))


def test_the_export_is_laid_out_for_the_hub(exported):
    assert {name: path.relative_to(path.parents[1]).as_posix() for name, path in exported.items()} == {
        "onnxruntime": "onnx/model.onnx",
        "onnxruntime-int8": "onnx/model_quantized.onnx",
    }
    for path in exported.values():
        graph = onnx.load(path).graph
        assert [i.name for i in graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
        assert [o.name for o in graph.output] == ["logits"]
        assert [d.dim_param for d in graph.input[0].type.tensor_type.shape.dim] == ["batch", "sequence"]
    weights = sum(
        m.weight.numel() for m in make("bert").modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)
    )
    saved = exported["onnxruntime"].stat().st_size - exported["onnxruntime-int8"].stat().st_size
    assert 2.4 * weights < saved < 3 * weights


@pytest.mark.parametrize(("batch", "length"), [(1, 5), (4, 33), (2, 40)])
def test_fp32_gives_the_models_logits_at_any_shape(bert, exported, batch, length):
    inputs = example_inputs(bert, batch, length, seed=batch, mask_zeros=True)
    got = open_onnx(exported["onnxruntime"], 1)(arrays(inputs))
    assert relative(got, logits(bert, inputs)) < 1e-5


@pytest.mark.slow
def test_weights_that_one_file_cannot_hold_lie_beside_it(bert, tmp_path, monkeypatch):
    bert.save_pretrained(tmp_path)
    source, folder = Source(str(tmp_path)), tmp_path / "onnx"
    options = {"engines": ["onnxruntime", "onnxruntime-int8"], "made_of": digests(source)}
    monkeypatch.setattr(files, "LIMIT", 20_000)  # bytes; it is 2 GB
    made = export_onnx(bert, tmp_path, **options)
    inputs = example_inputs(bert, 2, 9, mask_zeros=True)
    assert relative(open_onnx(made["onnxruntime"], 1)(arrays(inputs)), logits(bert, inputs)) < 1e-5
    names = {f"{name}{end}" for name in ("model.onnx", "model_quantized.onnx") for end in ("", "_data")}
    assert {file.name for file in folder.iterdir()} == names and stale(source, options["engines"], None) == []
    weights = sum(p.numel() for p in bert.parameters() if p.numel() >= 256)
    assert export_files(tmp_path)["onnx/model.onnx_data"] >= 4 * weights > 2 * made["onnxruntime"].stat().st_size
    assert ENGINES["onnxruntime"].note(made["onnxruntime"]).startswith("weights float32")
    data = folder / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-1])
    assert stale(source, options["engines"], None) == ["onnxruntime"]
    with pytest.raises(ExportError, match=r"model.onnx_data, which holds weights of model.onnx, is missing or cut"):
        ENGINES["onnxruntime"].note(made["onnxruntime"])
    with files.writing_pair(made["onnxruntime"]) as file:
        file.write_bytes(b"one that needs none")
    assert {file.name for file in folder.iterdir()} == names - {data.name}, "what is beside the file is not its own"


def test_what_a_session_unpacks_is_never_one_file(exported, monkeypatch):
    """Kernels are read of the graph that a session writes: 1 GB of codes may be 4 GB of floats there."""
    sizes, load = [], onnx.load
    monkeypatch.setattr(onnx, "load", lambda file, **how: sizes.append(Path(file).stat().st_size) or load(file, **how))
    assert "MatMul" in kernels(exported["onnxruntime"])
    assert 2 * sizes[0] < exported["onnxruntime"].stat().st_size


def test_every_input_is_alive(exported):
    run = open_onnx(exported["onnxruntime"], 1)
    inputs = arrays(example_inputs(make("bert"), 2, 12))
    before = run(inputs)
    for name in inputs:
        changed = inputs[name].copy()
        changed[1, 6:] = 1 - changed[1, 6:] if name != "input_ids" else changed[1, 6:][::-1]
        after = run({**inputs, name: changed})
        assert np.array_equal(before[0], after[0]) and not np.allclose(before[1], after[1], atol=1e-4), name


def test_int8_keeps_a_grid_it_finds(bert, exported):
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(exported["onnxruntime-int8"]).graph.initializer}
    layers = {p: m for p, m in bert.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)}
    large = {p: m.weight.detach().numpy() for p, m in layers.items() if m.weight.numel() >= SMALL}
    assert len(large) == 3 * 6 + 1 + 2  # per block, pooler, words and positions; not types, not the classifier
    for path, weight in large.items():
        codes = stored[f"{path}/codes"]
        scale = stored[f"{path}/scale"] if f"{path}/scale" in stored else stored[f"{path}/scale_row"][:, None]
        assert codes.dtype == np.int8
        np.testing.assert_array_equal(codes * scale.astype(np.float32), weight)
    assert not [n for n, t in stored.items() if t.dtype == np.float32 and t.ndim == 2 and t.size >= SMALL]


def test_int8_is_near_the_model(bert, exported):
    inputs = example_inputs(bert, 8, 20, seed=5, mask_zeros=True)
    error = relative(as_written(exported["onnxruntime-int8"], arrays(inputs)), logits(bert, inputs))
    assert 0 < error < 0.1


def test_images_and_packed_layers_export_and_the_model_stays(tmp_path, capfd):
    model = make("vit").train()
    pack_(model, "vit.layers.0.mlp.fc1")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    files = export_onnx(model, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert model.training and model.config._attn_implementation == "sdpa"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    inputs = example_inputs(model, 5, seed=3)
    wanted = logits(model.eval(), inputs)
    assert relative(open_onnx(files["onnxruntime"], 1)(arrays(inputs)), wanted) < 1e-5
    assert relative(open_onnx(files["onnxruntime-int8"], 1)(arrays(inputs)), wanted) < 0.1


def test_plain_copy_has_no_packed_layer_and_the_same_logits():
    model = make("bert")
    pack_(model, "bert.embeddings.word_embeddings")
    plain = plain_copy(model)
    assert all(p.is_floating_point() for p in plain.parameters())
    inputs = example_inputs(model, 2, 9, mask_zeros=True)
    assert relative(logits(plain, inputs), logits(model, inputs)) < 1e-5


def test_a_disagreeing_export_is_refused_with_its_error_and_leaves_nothing(tmp_path, monkeypatch):
    real = trace.layer_of

    def with_other_weights(path, name, module):
        layer = real(path, name, module)
        if path == "classifier":
            layer.weight.values[:] *= 1.01
        return layer

    monkeypatch.setattr(trace, "layer_of", with_other_weights)
    with pytest.raises(ExportError, match=r"disagrees with the model: largest error 9\.\de-03|1\.0\de-02"):
        export_onnx(make("vit"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_exporter_is_an_export_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no such operator")))
    with pytest.raises(ExportError, match="RuntimeError: no such operator"):
        export_onnx(make("vit"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_command_that_adds_it(tmp_path, monkeypatch):
    def without(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ExportError, match=r'onnx is not installed; run: pip install "hfcompress\[onnx\]"'):
        export_onnx(make("bert"), tmp_path)


def test_engines_agree_and_fill_in_what_a_tokenizer_leaves_out(bert, exported):
    source = Source(str(exported["onnxruntime"].parents[1]))
    inputs = arrays(example_inputs(bert, 2, 7))
    del inputs["token_type_ids"]
    inputs["labels"] = np.zeros(2, np.int64)
    found = [
        open_engine(n, source, 1, "AutoModelForSequenceClassification")(inputs) for n in ("pytorch", "onnxruntime")
    ]
    assert found[0].shape == (2, 3) and relative(found[1], found[0]) < 1e-5
    loaded = AutoModelForSequenceClassification.from_pretrained(source.checkpoint, dtype=torch.float32).eval()
    assert relative(found[0], logits(loaded, {"input_ids": torch.from_numpy(inputs["input_ids"])})) < 1e-5


def test_unknown_engine_and_missing_export(tmp_path):
    with pytest.raises(MeasureError, match=r"no engine is called 'onnxruntime-int4'. Did you mean 'onnxruntime-int8'"):
        open_engine("onnxruntime-int4", Source(str(tmp_path)), 1, "AutoModel")
    with pytest.raises(ExportError, match=r"model_quantized.onnx does not exist; export the model first"):
        open_engine("onnxruntime-int8", Source(str(tmp_path)), 1, "AutoModel")


@pytest.mark.parametrize(("rounds", "wrong", "fine"), [(True, 1, True), (True, 12, False), (False, 1, False)])
def test_a_code_that_falls_on_the_other_side_of_a_half_is_no_wrong_export(rounds, wrong, fine):
    """With rounded inputs few logits may be off by a flipped code; many, or any without rounding, are a fault."""
    model = make("bert")

    class Logits(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return model(**dict(zip(spec_of(model).names, tensors, strict=True))).logits

    def run(inputs):
        found = Logits()(*(torch.from_numpy(v) for v in inputs.values())).detach().numpy()
        found.ravel()[:wrong] += 0.05 * abs(found).max()
        return found

    layers = {"layer": SimpleNamespace(inputs=object() if rounds else None)}
    traced = SimpleNamespace(plain=Logits(), spec=spec_of(model), image_size=None, layers=layers)
    with contextlib.nullcontext() if fine else pytest.raises(ExportError, match="disagrees"):
        check(traced, "onnxruntime", run)
