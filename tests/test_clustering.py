"""Codebooks: k-means against scikit-learn, packed layers, trained codewords, zeros that stay, hostile specs."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.cluster import KMeans
from tiny import Examples, auto_class, logits, make
from torch import nn
from torch.nn.utils import parametrize
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
from transformers.pytorch_utils import Conv1D

from hfcompress import HFCompressTrainer, compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import CheckpointError, TargetError
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.registry import create
from hfcompress.methods.cluster_weights import ClusterWeightsConfig
from hfcompress.methods.magnitude import MagnitudeConfig
from hfcompress.methods.n_m import NOfMConfig
from hfcompress.methods.product_quantization import ProductQuantizationConfig
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig
from hfcompress.modules.chains import block_layers
from hfcompress.modules.clustered import ClusteredWeight, pack_clustered_
from hfcompress.modules.packed import dequantize_
from hfcompress.modules.spec import build, spec_of
from hfcompress.modules.storage import Packed
from hfcompress.ops.clustering import cluster
from hfcompress.ops.codebooks import Codebook
from hfcompress.ops.kmeans import kmeans_lines

BOOKS = [
    Codebook(4),
    Codebook(3, rows=4),
    Codebook(2, rows=5, columns=7),
    Codebook(1, columns=10),
    Codebook(4, dim=2),
    Codebook(3, dim=3, columns=6),
    Codebook(2, dim=5, rows=7),
]


def weights(rows: int = 12, columns: int = 30) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_is_that_of_scikit_learn(weighted):
    values = torch.randn(3, 400, generator=torch.Generator().manual_seed(1))
    heavy = torch.rand(3, 400, generator=torch.Generator().manual_seed(2)) + 0.01 if weighted else None
    ours = kmeans_lines(values, 6, heavy)
    for i, line in enumerate(values):
        start = torch.linspace(float(line.min()), float(line.max()), 6)[:, None].numpy()
        theirs = KMeans(6, init=start, n_init=1, max_iter=300, tol=0)
        theirs.fit(line[:, None].numpy(), sample_weight=None if heavy is None else heavy[i].numpy())
        assert ours[i].tolist() == pytest.approx(sorted(theirs.cluster_centers_[:, 0]), abs=1e-4)


def test_a_value_of_no_weight_moves_nothing():
    values = torch.tensor([[0.0, 0.1, 1.0, 1.1, 100.0]])
    found = kmeans_lines(values, 2, torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]]))
    assert found[0].tolist() == pytest.approx([0.05, 1.05])


@pytest.mark.parametrize("book", BOOKS, ids=str)
@pytest.mark.parametrize("init", ["linear", "kmeans++"])
def test_every_vector_gets_its_nearest_codeword(book, init):
    weight = weights()
    found = cluster(weight, book, init=init)
    assert found.codes.shape == (12, 30 // book.dim)
    assert found.words.shape == (found.words.shape[0], 2**book.bits, book.dim)
    rows, columns = torch.arange(12)[:, None], torch.arange(30 // book.dim)[None] * book.dim
    across = book.shape(12, 30)[1]
    block = rows // (book.rows or 12) * across + columns // (book.columns or 30)
    words = found.words.float()[block]  # rows, vectors, 2^bits, dim
    distance = (weight.view(12, -1, 1, book.dim) - words).square().sum(-1)
    best = words.gather(2, distance.argmin(-1)[..., None, None].expand(-1, -1, 1, book.dim))
    assert torch.allclose(found.dequantize(), best.reshape(12, 30), atol=1e-6)
    assert (found.dequantize() - weight).square().mean() < 0.6 * weight.square().mean()


def _layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "linear": nn.Linear(30, 12),
        "embedding": nn.Embedding(12, 30),
        "conv1d": Conv1D(12, 30),
        "conv2d": nn.Conv2d(6, 8, (3, 2)),
    }


@pytest.mark.parametrize("kind", _layers())
@pytest.mark.parametrize("pruned", [False, True])
def test_packed_layers_compute_with_their_codewords(kind, pruned):
    model = nn.ModuleDict({"layer": _layers()[kind]})
    layer = model["layer"]
    plain = copy.deepcopy(layer)
    book = Codebook(3, rows=4)
    matrix = (plain.weight.T if kind == "conv1d" else plain.weight).detach().flatten(1)
    mask = torch.rand(matrix.shape, generator=torch.Generator().manual_seed(4)) > 0.5 if pruned else None
    found = cluster(matrix, book, mask)
    pack_clustered_(model, "layer", found, mask)
    wanted = found.dequantize() * (1 if mask is None else mask)
    packed = model["layer"]
    assert isinstance(packed, Packed) and torch.equal(packed.dequantized(), wanted)
    count = matrix.numel() if mask is None else int(mask.sum())
    assert packed.weight_codes.numel() == -(-count * 3 // 8)
    x = torch.tensor([[1, 5], [0, 11]]) if kind == "embedding" else torch.randn(2, 6, 5, 5)
    x = torch.randn(2, 30) if kind in ("linear", "conv1d") else x
    plain.weight.data = (wanted.T if kind == "conv1d" else wanted).reshape(plain.weight.shape)
    assert torch.allclose(packed(x), plain(x), atol=1e-6)
    assert torch.equal(dequantize_(model)["layer"].weight, plain.weight)


@pytest.mark.parametrize("dim", [1, 3])
def test_a_table_looks_up_rows_of_any_width(dim):
    model = nn.ModuleDict({"table": nn.Embedding(9, 21)})
    found = cluster(model["table"].weight, Codebook(3, dim, rows=4 if dim == 1 else None, columns=21))
    pack_clustered_(model, "table", found)
    ids = torch.tensor([[8, 0, 3], [3, 7, 1]])
    assert torch.equal(model["table"](ids), found.dequantize()[ids])


def test_what_a_spec_may_not_ask_for():
    old = nn.Linear(32, 16)
    with torch.device("meta"):
        good = build({**spec_of(old), "kind": "packed_linear", "codebook": {"bits": 3, "rows": 4}}, old, "x")
    assert spec_of(good)["codebook"] == {"bits": 3, "rows": 4}
    bad = (
        {"bits": 9},
        {"bits": 8, "rows": 1, "columns": 1},
        {"dim": 5},
        {"dim": 0},
        {"rows": -1},
        {"colour": 1},
        [],
        {"bits": True},
    )
    for codebook in bad:
        with pytest.raises(CheckpointError, match=r"codebook|codewords"):
            build({**spec_of(old), "kind": "packed_linear", "codebook": codebook}, old, "x")


def train(model: nn.Module, *methods, folder, steps: int = 4):
    args = TrainingArguments(
        str(folder), max_steps=steps, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    trainer = HFCompressTrainer(model=model, args=args, recipe=list(methods), train_dataset=Examples("bert"))
    trainer.train()
    return trainer.model.eval()


def test_a_codeword_gets_the_sum_of_its_members_gradients():
    layer = nn.Linear(8, 4, bias=False)
    wrapper = ClusteredWeight(layer, layer.weight.shape, Codebook(2))
    wrapper.start(layer.weight.detach(), "linear", 0)
    parametrize.register_parametrization(layer, "weight", wrapper, unsafe=True)
    x = torch.randn(5, 8)
    layer(x).square().sum().backward()
    values = layer.weight.detach().requires_grad_()
    (x @ values.T).square().sum().backward()
    sums = torch.zeros(4).index_add_(0, wrapper.index.flatten().long(), values.grad.flatten())
    assert torch.allclose(wrapper.words.grad.flatten(), sums, atol=1e-4)
    assert layer.parametrizations.weight.original.grad is None


def test_training_moves_codewords_and_keeps_codes(tmp_path):
    one_shot = compress(make("bert"), ClusterWeightsConfig(clusters=8, rows=None))
    trained = train(make("bert"), ClusterWeightsConfig(clusters=8, rows=None), folder=tmp_path)
    path = "bert.encoder.layer.0.output.dense"
    ours, theirs = (m.get_submodule(path).clustered() for m in (trained, one_shot))
    assert (ours.codes == theirs.codes).float().mean() > 0.9  # the first step is taken before they are chosen
    assert not torch.equal(ours.words, theirs.words)


@pytest.mark.parametrize("together", [True, False])
def test_pruned_weights_stay_zero(together, tmp_path):
    prune = MagnitudeConfig(sparsity=0.5, schedule={"start": 0.0, "end": 0.2})
    cluster_ = ClusterWeightsConfig(clusters=8, rows=None, start=0.5)
    if together:
        model = train(make("bert"), prune, cluster_, folder=tmp_path)
    else:
        model = compress(compress(make("bert"), prune), cluster_)
    layer = model.get_submodule("bert.encoder.layer.1.intermediate.dense")
    assert layer.sparse and layer.nonzeros == layer.rows * layer.columns // 2
    assert int((layer.dequantized() == 0).sum()) >= layer.nonzeros
    assert len(layer.clustered().words.unique()) <= 8
    loaded = load_model(save_checkpoint(model, tmp_path / "saved"), auto_class("bert"))
    assert torch.allclose(logits(loaded, "bert"), logits(model, "bert"), atol=1e-6)


@pytest.mark.parametrize("prune", [MagnitudeConfig, NOfMConfig])
def test_weights_pruned_after_they_are_clustered_are_zero(prune, tmp_path):
    """Nothing is masked yet when clustering starts by default: the codewords of what was masked later came back."""
    later = {"start": 0.3, "end": 0.8}
    model = train(make("bert"), prune(schedule=later), ClusterWeightsConfig(clusters=8), folder=tmp_path)
    for _, layer in block_layers(model):
        assert layer.sparse and layer.nonzeros == layer.rows * layer.columns // 2


def test_while_training_zeros_of_a_pruned_weight_are_zero():
    layer = nn.Linear(16, 8)
    layer.weight.data *= torch.rand(8, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    zeros = layer.weight == 0
    wrapper = ClusteredWeight(layer, layer.weight.shape, Codebook(2))
    wrapper.start(layer.weight.detach(), "linear", 0)
    seen = wrapper(layer.weight)
    assert torch.equal(seen == 0, zeros) and len(seen[~zeros].unique()) <= 4
    stored, mask = wrapper.clustered(layer.weight.detach())
    assert torch.equal(mask, ~zeros) and torch.equal(stored.dequantize() * mask, seen)
    spared = ClusteredWeight(layer, layer.weight.shape, Codebook(2), masked=True)  # others of the model lost more
    spared.start(torch.ones_like(layer.weight), "linear", 0)
    assert spared.clustered(torch.ones_like(layer.weight))[1] is None, "a mask of ones takes a bit per weight"


def test_tied_weights_stay_tied(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    model = compress(GPT2LMHeadModel(config).eval(), ClusterWeightsConfig(rows=8))
    assert model.lm_head.weight_codes is model.transformer.wte.weight_codes
    ids = torch.arange(12)[None]
    loaded = load_model(save_checkpoint(model, tmp_path), "AutoModelForCausalLM")
    assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)


def test_layers_whose_codebooks_would_be_larger_stay_whole(tmp_path):
    cycle = Lifecycle([create("cluster_weights", {"clusters": 16, "rows": None, "group_size": 1})], training=False)
    model = make("bert")
    cycle.prepare(model)
    report = cycle.finalize(model)["cluster_weights"]
    assert report["layers_left_whole"] == 1 and report["layers"] > 15
    assert type(model.bert.embeddings.token_type_embeddings) is nn.Embedding  # 2 rows: a codebook for every column
    loaded = load_model(save_checkpoint(model, tmp_path), auto_class("bert"))
    assert torch.equal(logits(loaded, "bert"), logits(model, "bert"))
    with pytest.raises(TargetError, match=r"would take more than the weights, in all 2\d layers"):
        compress(make("bert"), ClusterWeightsConfig(clusters=256, rows=None, group_size=1))
    with pytest.raises(TargetError, match="more bytes than the table"):  # more numbers, and no loader would take it
        compress(make("bert"), ProductQuantizationConfig(codewords=128, targets=["re:.*word_embeddings"]))


def test_what_is_in_few_bits_already_is_refused():
    model = compress(make("bert"), QuantizeWeightsConfig(bits=4))
    with pytest.raises(TargetError, match="4 bits already; add it to `ignore`"):
        compress(model, ClusterWeightsConfig())
    clustered = compress(make("bert"), ClusterWeightsConfig())
    with pytest.raises(TargetError, match="4 bits already; add it to `ignore`"):
        compress(clustered, QuantizeWeightsConfig())
