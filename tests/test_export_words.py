"""Codebooks and shared layers in ONNX files: small, stored once, and equal to the model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from tiny import as_written, make

from hfcompress import compress
from hfcompress.export.inputs import example_inputs, spec_of
from hfcompress.export.onnx import export_onnx
from hfcompress.export.runtime import open_onnx
from hfcompress.methods.cluster_weights import ClusterWeightsConfig
from hfcompress.methods.hash_embeddings import HashEmbeddingsConfig
from hfcompress.methods.magnitude import MagnitudeConfig
from hfcompress.methods.product_quantization import ProductQuantizationConfig
from hfcompress.methods.share_layers import ShareLayersConfig

STAGES = {
    "whole": [ClusterWeightsConfig(rows=None)],
    "rows": [ClusterWeightsConfig(clusters=8, rows=12)],
    "columns": [ClusterWeightsConfig(clusters=4, rows=16, group_size=12)],
    "8 bits": [ClusterWeightsConfig(clusters=256, rows=None, targets=["re:.*(dense|word_embeddings)"])],
    "pruned": [MagnitudeConfig(sparsity=0.5, targets=["Linear", "Embedding"]), ClusterWeightsConfig(rows=24)],
    "product": [ProductQuantizationConfig(dim=4, codewords=16), ClusterWeightsConfig(targets=["Linear"])],
    "hashed": [HashEmbeddingsConfig()],
    "shared": [ShareLayersConfig(group=2)],
}


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("kind", STAGES)
def test_exports_agree_with_the_model(kind, tmp_path):
    model = make("bert")
    for method in STAGES[kind]:
        compress(model, method)
    files = export_onnx(model, tmp_path)  # raises where the float file disagrees
    full = export_onnx(model, tmp_path / "full", engines=["onnxruntime-int8"], reduce_range=False)["onnxruntime-int8"]
    spec = spec_of(model)
    inputs = example_inputs(spec, 3, 9, None, 1, mask_zeros=True)
    with torch.inference_mode():
        wanted = model(**inputs).logits.numpy()
    feed, largest = {k: v.numpy() for k, v in inputs.items()}, np.abs(wanted).max()
    assert np.abs(as_written(full, feed) - wanted).max() < 0.1 * largest
    file = files["onnxruntime-int8"]  # whose codes have the range that this processor adds without saturation
    assert np.abs(open_onnx(file, 1)(feed) - as_written(file, feed)).max() < 1e-3 * largest


@pytest.mark.slow
def test_a_clustered_file_is_as_small_as_the_checkpoint(tmp_path):
    """Codes are stored as in the checkpoint; what is more is the graph, the same for any width."""
    sizes = []
    for method in ([], [ClusterWeightsConfig(rows=None)]):
        model = compress(make("bert"), method) if method else make("bert")
        file = export_onnx(model, tmp_path / str(len(method)), engines=["onnxruntime"])["onnxruntime"]
        proto = onnx.load(str(file))
        stored = sum(len(t.raw_data) for t in proto.graph.initializer)
        sizes.append(stored - sum(p.nbytes for p in model.parameters()))
    assert sizes[1] - sizes[0] < 4096  # shifts, row numbers and shapes, shared by all layers


@pytest.mark.slow
def test_shared_weights_are_stored_once(tmp_path):
    model = compress(make("bert"), ShareLayersConfig(group="all"))
    for engine, file in export_onnx(model, tmp_path).items():
        proto = onnx.load(str(file))
        large = [len(t.raw_data) for t in proto.graph.initializer if len(t.raw_data) >= 32 * 64]
        tables = [99 * 32, 40 * 32]
        wanted = {"onnxruntime": 2 + 6 + 1, "onnxruntime-int8": 2 + 2 + 0}[engine]
        assert len(large) <= wanted, (engine, large, tables)
