"""Layers as an export spells them out: every width of codes, in every way to compute, against NumPy."""

import tempfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from tiny import make
from transformers import AutoModelForMaskedLM, GPT2Config, GPT2LMHeadModel

from hfcompress.checkpoint import save_checkpoint
from hfcompress.core.errors import ExportError
from hfcompress.export.bits import fold, planes
from hfcompress.export.cpu import needs_reduced_range
from hfcompress.export.graph import Graph, lower
from hfcompress.export.inputs import InputSpec, example_inputs
from hfcompress.export.lower_float import FloatProducts
from hfcompress.export.lower_int8 import Int8Products, rounded
from hfcompress.export.onnx import export_onnx
from hfcompress.export.opening import NOTE, open_onnx
from hfcompress.export.trace import DOMAIN, Logits, Traced
from hfcompress.export.weights import SMALL, Coded, Dense, Inputs, Layer, halved
from hfcompress.modules.packed import PackedLinear, pack_
from hfcompress.ops.quantization import Grid

ROWS, COLUMNS = 24, 256
SATURATES = needs_reduced_range()  # of this processor: full 8-bit codes give wrong sums there, in any engine
RNG = np.random.default_rng(0)


def coded(bits: int, group: int = 0, *, asymmetric=False, step=1, shape=(ROWS, COLUMNS), sparse=False) -> Coded:
    """Make random codes that use the whole range; `sparse`: half of them are the zero point, and not stored."""
    rows, columns = shape
    groups = -(-columns // group) if group else 1
    levels = 2**bits if bits else 3
    low = -1 if step == 2 or not bits else -(2 ** (bits - 1))
    codes = low + step * RNG.integers(0, levels, shape)
    scale = torch.from_numpy((0.5 + RNG.random((rows, groups))) / levels).bfloat16().float().numpy()
    zero = RNG.integers(low, low + levels, (rows, groups)).astype(np.int8) if asymmetric else None
    mask = RNG.random(shape) < 0.5 if sparse else None
    if mask is not None:
        codes = np.where(mask, codes, 0 if zero is None else spread(zero, columns, group))
    return Coded(codes.astype(np.int8), scale, zero, bits, step, group or None, mask)


def spread(of_groups: np.ndarray, columns: int, group: int) -> np.ndarray:
    return np.repeat(of_groups, group or columns, axis=1)[:, :columns]


def values(weight: Coded | Dense) -> np.ndarray:
    """Widen by the definition, apart from the code under test."""
    if isinstance(weight, Dense):
        return weight.values
    columns, group = weight.shape[1], weight.group_size or 0
    zero = 0 if weight.zero is None else spread(weight.zero.astype(np.float32), columns, group)
    return (weight.codes.astype(np.float32) - zero) * spread(weight.scale, columns, group)


def held_here(weight: Coded | Dense) -> Coded:
    """Return a weight as integer products of this processor hold it: to 7 bits where sums would saturate."""
    found = rounded(weight)
    return halved(found) if SATURATES and found.groups == 1 else found


def spelt(layer: Layer, how, *more: Layer) -> onnx.ModelProto:
    """Spell out a graph of this layer; any `more` of them read, one after the other, what the one before gives."""
    x, y = ("ids", TensorProto.INT64) if layer.is_table else ("x", TensorProto.FLOAT), "y"
    layers = {one.path: one for one in (layer, *more)}
    names = [x[0], *(f"of_{path}" for path in list(layers)[:-1]), y]
    nodes = [
        helper.make_node(
            "Embedding" if one.is_table else "Linear",
            [names[i]],
            [names[i + 1]],
            domain=DOMAIN,
            path=one.path,
            rank=2 if one.is_table else 3,
        )
        for i, one in enumerate(layers.values())
    ]
    shape = ["a", "b"] if layer.is_table else ["a", "b", layer.weight.shape[1]]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info(x[0], x[1], shape)],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["a", "b", "c"])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return lower(Traced(proto, layers, Logits(torch.nn.Identity(), ("x",)), InputSpec(("x",))), how)


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def weight_bytes(proto: onnx.ModelProto) -> int:
    return sum(len(t.raw_data) for t in proto.graph.initializer)


WIDTHS = [
    coded(8),
    coded(8, asymmetric=True),
    coded(6),
    coded(6, 64),
    coded(4),
    coded(4, asymmetric=True),
    coded(4, 64),
    coded(4, 64, asymmetric=True),
    coded(4, 32, shape=(ROWS, 240)),
    coded(4, shape=(ROWS, 40)),
    coded(3),
    coded(3, 32, asymmetric=True),
    coded(3, 50, shape=(ROWS, 240)),
    coded(2),
    coded(0),
    coded(0, 64),
    coded(1, step=2),
    coded(8, 64, asymmetric=True),
    coded(6, shape=(ROWS, 37)),
    coded(8, sparse=True),
    coded(4, sparse=True),
    coded(4, 64, sparse=True, asymmetric=True),
    coded(1, step=2, sparse=True),
    Dense(random := RNG.standard_normal((ROWS, COLUMNS)).astype(np.float32)),
    Dense(np.where(half := RNG.random((ROWS, COLUMNS)) < 0.5, random, 0), half),
]


def name(weight) -> str:
    if isinstance(weight, Dense):
        return "float32" + "-sparse" * (weight.mask is not None)
    more = "-zero" * (weight.zero is not None) + "-sparse" * (weight.mask is not None)
    return f"{weight.bits}b-{weight.groups}g{more}-{weight.shape[1]}"


@pytest.mark.parametrize("weight", WIDTHS, ids=name)
def test_float_products_and_tables_are_exact_and_take_their_bits(weight):
    rows, columns = weight.shape
    bias = RNG.standard_normal(rows).astype(np.float32)
    x = RNG.standard_normal((2, 5, columns)).astype(np.float32)
    linear = spelt(Layer("a", "a", False, weight, bias), FloatProducts())
    np.testing.assert_allclose(run(linear, x), x @ values(weight).T + bias, rtol=1e-4, atol=1e-4)
    table = spelt(Layer("t", "t", True, weight), FloatProducts())
    ids = RNG.integers(0, rows, (3, 4))
    np.testing.assert_allclose(run(table, ids), values(weight)[ids], rtol=1e-6)
    bits = (weight.bits or 1.6) if isinstance(weight, Coded) else 32
    stored = weight.mask.sum() * bits + rows * columns if weight.mask is not None else rows * columns * bits
    if isinstance(weight, Coded):
        stored += 8 * weight.scale.size * (2 if weight.zero is None else 3)
    constants = 300 + 4 * columns + 4 * rows  # shapes, which group a column is in, where a row starts
    assert max(weight_bytes(linear) - bias.nbytes, weight_bytes(table)) <= 1.06 * stored / 8 + constants


@pytest.mark.parametrize("weight", WIDTHS, ids=name)
def test_int8_products_err_by_the_rounding_of_activations_only(weight):
    x = RNG.standard_normal((2, 5, weight.shape[1])).astype(np.float32)
    proto = spelt(Layer("a", "a", False, weight), Int8Products(SATURATES))
    held = held_here(weight)
    wanted = x @ values(held).T
    step = (x.max() - x.min()) / 255
    bound = 0.5 * step * np.abs(values(held)).sum(1).max()
    error = np.abs(run(proto, x) - wanted).max()
    assert (error < bound or held.groups > 1) and error < 0.03 * np.abs(wanted).max()


def test_int8_products_use_the_integer_operators():
    ops = {n.op_type for n in spelt(Layer("a", "a", False, coded(3)), Int8Products(False)).graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= ops
    proto = spelt(Layer("a", "a", False, coded(4, 64)), Int8Products(False))
    (node,) = [n for n in proto.graph.node if n.domain]
    assert node.op_type == "MatMulNBits" and {a.name: a.i for a in node.attribute}["accuracy_level"] == 4
    assert {o.domain for o in proto.opset_import} == {"", "com.microsoft"}


@pytest.mark.parametrize("weight", [coded(8), coded(8, asymmetric=True), coded(3), coded(4, 64)], ids=name)
@pytest.mark.parametrize(
    "inputs", [Inputs(0.03, 120, 8), Inputs(0.3, 7, 4), Inputs(1.5, 1, 2)], ids=lambda inputs: f"{inputs.bits}b"
)
@pytest.mark.parametrize("how", [FloatProducts(), Int8Products(SATURATES)], ids=lambda how: type(how).__name__)
def test_inputs_with_a_grid_are_rounded_to_it_and_nothing_else(weight, inputs, how):
    x = 3 * RNG.standard_normal((2, 5, weight.shape[1])).astype(np.float32)
    bias = RNG.standard_normal(weight.shape[0]).astype(np.float32)
    proto = spelt(Layer("a", "a", False, weight, bias, inputs), how)
    low, high = -inputs.zero, 2**inputs.bits - 1 - inputs.zero
    on_grid = np.clip(np.round(x / np.float32(inputs.step)), low, high) * np.float32(inputs.step)
    held = held_here(weight) if isinstance(how, Int8Products) else weight
    np.testing.assert_allclose(run(proto, x), on_grid @ values(held).T + bias, rtol=1e-4, atol=1e-4)
    if isinstance(how, Int8Products) and weight.groups == 1:
        assert "MatMulIntegerToFloat" in executed(proto)


def executed(proto: onnx.ModelProto) -> set[str]:
    """Return the operators left once a session has folded and fused."""
    options = onnxruntime.SessionOptions()
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath, options.log_severity_level = f"{folder}/optimized.onnx", 3
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return {node.op_type for node in onnx.load(f"{folder}/optimized.onnx").graph.node}


@pytest.mark.parametrize("weight", [coded(3), coded(4, shape=(ROWS, 40)), coded(0), coded(8, sparse=True)], ids=name)
def test_unfolding_is_done_once_when_a_session_is_opened(weight):
    layer = Layer("a", "a", False, weight)
    assert executed(spelt(layer, FloatProducts())) == {"MatMul"}
    assert executed(spelt(layer, Int8Products(reduce_range=False))) == {"DynamicQuantizeMatMul"}


@pytest.mark.parametrize("reduce_range", [False, True])
def test_floats_without_their_zeros_are_computed_in_integers_and_stay_without(reduce_range):
    weight = WIDTHS[-1]
    proto = spelt(Layer("a", "a", False, weight), Int8Products(reduce_range))
    assert executed(proto) == {"DynamicQuantizeMatMul"}
    assert weight_bytes(proto) < 0.7 * weight.values.size  # a byte for each of half the weights, a bit for every one
    on_grid = spelt(Layer("a", "a", False, weight, inputs=Inputs(0.03, 120, 8)), Int8Products(reduce_range))
    assert "MatMulIntegerToFloat" in executed(on_grid)
    found = rounded(weight)
    assert (found.widened()[~weight.mask] == 0).all() and np.array_equal(found.mask, weight.mask)
    (node,) = [p.value for p in proto.metadata_props if p.key == NOTE]
    assert "8-bit without zeros" in node and "activations int8, dynamic (1)" in node


@pytest.mark.parametrize("asymmetric", [False, True])
def test_a_halved_grid_keeps_sums_of_two_products_within_16_bits(asymmetric):
    weight = coded(8, asymmetric=asymmetric)
    half = halved(weight)
    assert np.abs(half.codes.astype(int)).max() <= 64 and 255 * 64 * 2 < 2**15
    assert (np.abs(values(half) - values(weight)) <= weight.scale * 1.001).all()
    assert halved(coded(4)).bits == 4


@pytest.mark.parametrize("weight", [w for w in WIDTHS if rounded(w).bits == 8 and rounded(w).groups == 1], ids=name)
@pytest.mark.parametrize("inputs", [None, Inputs(0.03, 120, 8)], ids=["dynamic", "static"])
def test_a_head_tied_to_a_table_has_its_numbers_in_7_bits_and_the_table_in_8(weight, inputs):
    table, head = Layer("t", "t", True, weight), Layer("h", "t", False, weight, inputs=inputs)
    proto = spelt(table, Int8Products(reduce_range=True), head)
    ids = RNG.integers(0, ROWS, (2, 5))
    full, half = values(rounded(weight)), values(halved(rounded(weight)))
    x = full[ids]
    step, span = ((x.max() - x.min()) / 255, x) if inputs is None else (inputs.step, np.clip(x, *inputs.span))
    bound = 0.51 * step * np.abs(half).sum(1).max()
    np.testing.assert_allclose(run(proto, ids), span @ half.T, atol=bound)
    folded = {"DynamicQuantizeMatMul"} if inputs is None else {"MatMulIntegerToFloat"}
    assert executed(proto) >= folded, "the codes in 7 bits are made once, when a session is opened"
    alone = weight_bytes(spelt(table, Int8Products(reduce_range=True)))
    assert weight_bytes(proto) < alone + 24 * ROWS, "the codes lie in the file once"


def test_a_weight_may_be_shared_by_layers_that_round_their_inputs_otherwise():
    weight = coded(8, shape=(ROWS, ROWS))
    first, second = Layer("a", "a", False, weight), Layer("b", "a", False, weight, inputs=Inputs(0.03, 120, 8))
    x = RNG.standard_normal((2, 5, ROWS)).astype(np.float32)
    held = values(held_here(weight))
    wanted = np.clip(x @ held.T, *second.inputs.span) @ held.T
    got = run(spelt(first, Int8Products(SATURATES), second), x)
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_the_logits_of_a_tied_language_model_are_the_models_own_in_7_bits(tmp_path, family):
    if family == "bert":
        model = AutoModelForMaskedLM.from_config(make("bert").config).eval()
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_positions=40, n_embd=32, n_layer=2, n_head=4)).eval()
    assert model.get_input_embeddings().weight.numel() > SMALL
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.2)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    file = export_onnx(model, tmp_path, engines=["onnxruntime-int8"], reduce_range=True)["onnxruntime-int8"]
    inputs = example_inputs(model, 2, 9)
    with torch.inference_mode():
        wanted = model(**inputs).logits.numpy()
    got = open_onnx(file, 1)({k: v.numpy() for k, v in inputs.items()})
    assert 0.95 < (wanted * got).sum() / (wanted * wanted).sum() < 1.05
    assert np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()


def test_planes_of_any_width_fold_and_unfold():
    assert [planes(b) for b in (1, 2, 3, 4, 6, 7)] == [[1], [2], [2, 1], [4], [4, 2], [4, 2, 1]]
    numbers = RNG.integers(0, 4, (3, 8)).astype(np.uint8)
    folded = fold(numbers, 2)
    assert folded.shape == (3, 2) and folded[0, 0] == sum(int(n) << 2 * i for i, n in enumerate(numbers[0, :4]))


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(("family", "bits"), [("bert", 6), ("vit", 8)])
def test_a_packed_model_is_exported_packed(tmp_path, family, bits):
    model = make(family)
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and path != "classifier":
            pack_(model, path, Grid(bits))
    save_checkpoint(model, tmp_path)
    files = export_onnx(model, tmp_path)
    inputs = example_inputs(model, 4, seed=3)
    with torch.inference_mode():
        wanted = model(**inputs).logits.numpy()
    for engine, tolerance in (("onnxruntime", 1e-5), ("onnxruntime-int8", 0.1)):
        proto = onnx.load(files[engine])
        stored = sum(len(t.raw_data) for t in proto.graph.initializer)
        assert stored < 1.1 * (tmp_path / "model.safetensors").stat().st_size
        assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
        packed = sum(isinstance(module, PackedLinear) for module in model.modules())
        assert f"{bits}-bit ({packed})" in {p.key: p.value for p in proto.metadata_props}[NOTE]
        got = open_onnx(files[engine], 1)({k: v.numpy() for k, v in inputs.items()})
        assert np.abs(got - wanted).max() < tolerance * np.abs(wanted).max()


def test_a_name_is_given_once():
    graph = Graph()
    graph.node("Neg", ["x"], "y")
    graph.node("Neg", ["x"], "y")
    assert len(graph.nodes) == 1
    with pytest.raises(ExportError, match="two different nodes of the export are called 'y'"):
        graph.node("Abs", ["x"], "y")
    graph.constant("c", [1, 2], np.int8)
    graph.constant("c", [1, 2], np.int8)
    assert list(graph.constants) == ["c"]
    with pytest.raises(ExportError, match="two different constants of the export are called 'c'"):
        graph.constant("c", [1, 3], np.int8)
    graph.bfloat16("s", np.ones(2, np.float32))
    with pytest.raises(ExportError, match="two different constants of the export are called 's'"):
        graph.bfloat16("s", np.full(2, 2, np.float32))


@pytest.mark.slow
def test_layers_that_share_a_weight_store_it_once(tmp_path):
    model = make("bert")
    model.bert.encoder.layer[1].output.dense.weight = model.bert.encoder.layer[0].output.dense.weight
    model.bert.encoder.layer[2] = model.bert.encoder.layer[0]
    file = export_onnx(model, tmp_path, engines=("onnxruntime",))["onnxruntime"]
    names = {t.name for t in onnx.load(file).graph.initializer}
    assert "bert.encoder.layer.0.output.dense.weight" in names
    assert not {n for n in names if "layer.2." in n} and "bert.encoder.layer.1.output.dense.weight" not in names
    assert "bert.encoder.layer.1.output.dense.bias" in names
