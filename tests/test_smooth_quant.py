"""SmoothQuant: what is folded and what is not, and that the int8 export computes what PyTorch does."""

import copy

import numpy as np
import onnx
import pytest
import torch
from tiny import Examples, as_written, batch, logits, make

import hfcompress
from hfcompress.core.errors import TargetError
from hfcompress.export.onnx import export_onnx
from hfcompress.export.opening import NOTE, open_onnx
from hfcompress.methods import smooth_quant
from hfcompress.methods.smooth_quant import SmoothQuant, SmoothQuantConfig
from hfcompress.modules.packed import pack_
from hfcompress.modules.smoothing import Fold, fold_, norm_folds
from hfcompress.ops.smoothing import InputRange, input_grid, smoothing
from hfcompress.train.compress import compress


def calibration(name: str) -> list[dict[str, torch.Tensor]]:
    examples = Examples(name)
    return [{examples.key: examples.inputs[i : i + 8]} for i in (0, 8)]


def linear(model: torch.nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def test_factors_are_the_papers():
    largest, weight = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([[1.0, -2.0, 3.0], [0.5, 1.0, 1.0]])
    s = smoothing(largest, [weight[:1], weight[1:]], alpha=0.5)
    torch.testing.assert_close(s, torch.tensor([2.0, 0.5**0.5, 1.0]))
    torch.testing.assert_close(smoothing(largest, [weight], 1.0)[:2], largest[:2])


@pytest.mark.parametrize("search", [False, True])
def test_a_grid_spans_the_inputs_or_what_is_worth_it(search):
    torch.manual_seed(0)
    x = torch.randn(400, 3) + 1
    x[7, 1] = 1000.0  # an outlier that one would rather lose
    ranges = InputRange(3, x.device)
    for part in x.split(100):
        ranges.add(part)
    torch.testing.assert_close(ranges.largest(), x.abs().amax(0))
    step, zero = input_grid(ranges, torch.tensor([1.0, 2.0, 1.0]), 8, search=search)
    if search:
        wide = input_grid(ranges, torch.tensor([1.0, 2.0, 1.0]), 8, search=False)
        assert step < 0.3 * wide[0]
    else:
        assert float((255 - zero) * step) == pytest.approx(500, rel=0.02)
        assert float(-zero * step) <= float(x[:, [0, 2]].min()) + step


@pytest.mark.parametrize(("name", "kept"), [("vit", 6), ("bert", 0)])
def test_norms_are_folded_unless_something_else_reads_them(name, kept):
    model = make(name)
    before, state = logits(model, name), copy.deepcopy(model.state_dict())
    folds = norm_folds(model, batch(name), linear(model))
    assert len(folds) == 6  # two norms of each block; of BERT's last one only the first token is read
    done = [fold_(model, fold, torch.rand(32) + 0.5, batch(name)) for fold in folds]
    assert sum(done) == kept and torch.allclose(logits(model, name), before, atol=1e-4)
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, state[key])]
    assert len(changed) == kept + (3 * 3 + 3 if kept else 0)  # weights of norms (their biases are zero) and readers


def test_value_and_output_take_up_a_factor():
    model = make("bert")
    before = logits(model, "bert")
    block = "bert.encoder.layer.1.attention"
    fold = Fold(f"{block}.self.value", (f"{block}.output.dense",))
    assert fold_(model, fold, torch.rand(32) + 0.5, batch("bert"))
    assert torch.allclose(logits(model, "bert"), before, atol=1e-4)
    fold = Fold(f"{block}.self.query", (f"{block}.output.dense",))
    assert not fold_(model, fold, torch.rand(32) + 0.5, batch("bert"))


def outlying(name: str) -> torch.nn.Module:
    """A model with one channel of every norm far larger than the others, as trained transformers have them."""
    model = make(name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight[5] *= 60
        for path in linear(model):
            if "q_proj" in path or "k_proj" in path or "v_proj" in path or "fc1" in path:
                model.get_submodule(path).weight[:, 5] /= 60
    return model


def test_smoothing_makes_outliers_harmless(monkeypatch):
    wanted = logits(outlying("vit"), "vit")

    def error() -> float:
        model = compress(outlying("vit"), SmoothQuantConfig(), calibration=calibration("vit"))
        return float((logits(model, "vit") - wanted).abs().max())

    smoothed = error()
    monkeypatch.setattr(smooth_quant, "fold_", lambda *_: False)
    assert smoothed < 0.5 * error()


def test_what_reads_through_a_grid_can_be_trained_on():
    model = compress(make("bert"), SmoothQuantConfig(), calibration=calibration("bert"))
    frozen, before = {n for n, p in model.named_parameters() if not p.requires_grad}, logits(model, "bert")
    found = model(**batch("bert")).logits
    assert torch.equal(found.detach(), before)
    found.square().sum().backward()
    assert frozen and all(p.grad.any() for n, p in model.named_parameters() if n not in frozen)


def test_a_gradient_stops_where_the_grid_of_the_inputs_ends():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    pack_(model, "0")
    layer = model[0]
    layer.set_inputs(torch.tensor([0.1]), zero=10, bits=8)  # from -1 to 24.5
    x = torch.tensor([[-2.0, 0.13, 20.0, 30.0]], requires_grad=True)
    assert torch.equal(layer.rounded_inputs(x).detach(), layer.rounded_inputs(x.detach()))
    layer(x).sum().backward()
    wanted = layer.dequantized().sum(0) * torch.tensor([0.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(x.grad[0], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "vit"])
def test_the_int8_export_computes_what_pytorch_does(name, tmp_path):
    model = compress(make(name), SmoothQuantConfig(), calibration=calibration(name))
    files = export_onnx(model, tmp_path, reduce_range=False)
    inputs = {key: value.numpy() for key, value in batch(name).items()}
    if name == "bert":
        inputs |= {"attention_mask": np.ones((4, 9), np.int64), "token_type_ids": np.zeros((4, 9), np.int64)}
    wanted = logits(model, name).numpy()
    for engine, file in files.items():
        assert np.abs(as_written(file, inputs) - wanted).max() < 0.02 * np.abs(wanted).max(), engine
    here = export_onnx(model, tmp_path / "here", engines=["onnxruntime-int8"])["onnxruntime-int8"]
    assert np.abs(open_onnx(here, 1)(inputs) - as_written(here, inputs)).max() < 0.02 * np.abs(wanted).max()
    proto = onnx.load(files["onnxruntime-int8"])
    assert not {"DynamicQuantizeLinear", "MatMulInteger"} & {node.op_type for node in proto.graph.node}
    assert "activations int8, static (" in next(p.value for p in proto.metadata_props if p.key == NOTE)


def test_a_packed_layer_is_refused():
    model = make("bert")
    pack_(model, "bert.pooler.dense")
    with pytest.raises(TargetError, match="pooler"):
        compress(model, SmoothQuantConfig(targets=["bert.pooler.dense"]), calibration=calibration("bert"))


def test_it_is_public():
    assert hfcompress.SmoothQuantConfig is SmoothQuantConfig and SmoothQuant.Config is SmoothQuantConfig
