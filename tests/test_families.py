"""Every family: heads, units and blocks leave it without changing what is left, or the reason is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import CONVOLUTIONAL, LAYERS, MODELS, MORE, auto_class, batch, calibration, logits, make
from torch import nn
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D

from hfcompress import compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import CheckpointError, FamilyError, TargetError
from hfcompress.core.families import (
    Attention,
    base_prefix,
    blocks_of,
    embeddings_of,
    families,
    family_of,
    has_module,
    head_count,
    stacks_of,
    unit_count,
)
from hfcompress.core.files import between
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig
from hfcompress.modules.gate import ColumnGate
from hfcompress.modules.matrix import matrix
from hfcompress.modules.packed import pack_
from hfcompress.modules.parametrizations import attach, detach, find, trainable
from hfcompress.modules.shrink import keep_heads_, keep_units_
from hfcompress.run.families_table import families_markdown, reason_of, support

ALL = tuple(n for n in (*MODELS, *MORE) if n not in CONVOLUTIONAL)
LOCKED = ("mpnet", "t5")  # their heads share one table of position biases
STOCK_FFN = [n for n in ALL if not n.startswith(("dinov2", "swin"))]
STOCK_HEADS = ["vit", "deit", "dinov2", "beit", "llama", "qwen2", "qwen3", "llama-lm"]


def blocks(model: nn.Module):
    return blocks_of(model, family_of(model))


def alternating(size: int, cut: int = 1) -> torch.Tensor:
    """Keep all but `cut` heads or units, which do not lie together."""
    keep = torch.ones(size, dtype=torch.bool)
    keep[torch.arange(cut) * 2 % size] = False
    return keep


def close(model: nn.Module, path: str, keep: torch.Tensor, size: int) -> None:
    """Zero the columns that belong to what is not kept."""
    with torch.no_grad():
        matrix(model.get_submodule(path)).mul_(keep.repeat_interleave(size))


def same_after_reload(model: nn.Module, name: str, folder) -> nn.Module:
    save_checkpoint(model, folder)
    loaded = load_model(folder, auto_class(name))
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert torch.allclose(logits(loaded, name), logits(model, name), atol=1e-6)
    return loaded


def stock(folder) -> bool:
    return "quantization_config" not in json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", [n for n in ALL if n not in LOCKED])
def test_heads_leave_and_nothing_else_changes(name, tmp_path):
    model, untouched = make(name), make(name)
    for i, block in enumerate(blocks(model)):
        keep = alternating(head_count(model, block), 1 + i % 2 if head_count(model, block) > 2 else 1)
        close(untouched, block.output, keep, block.head_size)
        before = sum(p.numel() for p in model.parameters())
        keep_heads_(model, block, keep)
        removed = before - sum(p.numel() for p in model.parameters())
        assert removed >= 4 * block.key_size * int((~keep).sum())
        assert head_count(model, blocks(model)[i]) == int(keep.sum())
    assert torch.allclose(logits(model, name), logits(untouched, name), atol=1e-5)
    assert not torch.allclose(logits(model, name), logits(make(name), name), atol=1e-3)
    same_after_reload(model, name, tmp_path)


@pytest.mark.parametrize("name", LOCKED)
def test_heads_that_share_a_table_are_refused(name):
    model = make(name)
    with pytest.raises(FamilyError, match=r"relative_attention_bias has one column per head for all blocks together"):
        keep_heads_(model, blocks(model)[0], alternating(4))


def test_heads_of_beit_with_one_table_for_all_blocks_are_refused():
    model = make("beit")
    model = type(model)(type(model.config)(**{**model.config.to_dict(), "use_shared_relative_position_bias": True}))
    with pytest.raises(FamilyError, match="shared_position_bias has one column per head"):
        keep_heads_(model, blocks(model)[0], alternating(4))


@pytest.mark.parametrize("name", ALL)
def test_units_leave_and_nothing_else_changes(name, tmp_path):
    model, untouched = make(name), make(name)
    for i, block in enumerate(blocks(model)):
        keep = alternating(unit_count(model, block), 3 + i)
        close(untouched, block.down, keep, 1)
        keep_units_(model, block, keep)
        assert unit_count(model, blocks(model)[i]) == int(keep.sum())
    assert torch.allclose(logits(model, name), logits(untouched, name), atol=1e-5)
    assert not torch.allclose(logits(model, name), logits(make(name), name), atol=1e-3)
    same_after_reload(model, name, tmp_path)


@pytest.mark.parametrize("name", STOCK_FFN)
def test_units_cut_alike_fit_the_stock_config(name, tmp_path):
    model = make(name)
    for block in blocks(model):
        keep_units_(model, block, alternating(unit_count(model, block), 5))
    same_after_reload(model, name, tmp_path)
    assert stock(tmp_path)


@pytest.mark.parametrize("name", STOCK_HEADS)
def test_heads_cut_alike_fit_the_stock_config(name, tmp_path):
    model = make(name)
    for block in blocks(model):
        keep_heads_(model, block, alternating(head_count(model, block), 2))
    same_after_reload(model, name, tmp_path)
    assert stock(tmp_path)


def test_heads_the_config_refuses_are_written_as_structure(tmp_path):
    model = make("llama")
    for block in blocks(model):
        keep_heads_(model, block, alternating(4, 1))  # 6 query heads do not divide the hidden size
    loaded = same_after_reload(model, "llama", tmp_path)
    assert not stock(tmp_path) and loaded.config.num_attention_heads == 8


def test_the_base_model_loads_from_a_pruned_checkpoint(tmp_path):
    for name in ("gpt2", "deberta-v2", "swin", "beit"):
        model = make(name)
        for i, block in enumerate(blocks(model)):
            keep_heads_(model, block, alternating(head_count(model, block), 1 + i % 2 if name != "swin" else 1))
        save_checkpoint(model, tmp_path / name)
        base = AutoModel.from_pretrained(tmp_path / name).eval()
        with torch.no_grad():
            ours = getattr(model, model.base_model_prefix)(**batch(name))[0]
            assert torch.allclose(base(**batch(name))[0], ours, atol=1e-6)


def test_what_attention_counts_is_stored_and_bounded(tmp_path):
    model = make("gpt2")
    keep_heads_(model, blocks(model)[1], alternating(4))
    save_checkpoint(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    modules = config["quantization_config"]["modules"]
    assert modules["h.1.attn"] == {"kind": "sizes", "num_heads": 3, "split_size": 24}
    assert modules["h.1.attn.c_attn"] == {"kind": "conv1d", "nf": 72, "nx": 32}
    for hostile in ({"split_size": 10**9}, {"split_size": -1}, {"split_size": "24"}, {"layer_idx": 0}, {"nf": 3}):
        modules["h.1.attn"] = {"kind": "sizes", "num_heads": 3, "split_size": 24} | hostile
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"not between 1 and|are not the sizes"):
            load_model(tmp_path, auto_class("gpt2"))
    model = make("swin")
    keep_heads_(model, blocks(model)[0], alternating(2))
    save_checkpoint(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    path = next(p for p in config["quantization_config"]["modules"] if p.endswith("relative_position_bias"))
    config["quantization_config"]["modules"][path]["relative_position_bias_table"] = [10**9, 1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not between 1 and"):
        load_model(tmp_path, auto_class("swin"))


@pytest.mark.parametrize("name", ["gpt2-lm", "llama-lm"])
def test_a_pruned_model_generates_as_without_a_cache(name):
    model = make(name)
    for block in blocks(model):
        keep_heads_(model, block, alternating(4))
    ids = batch(name)["input_ids"]
    out = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        assert torch.equal(model(out).logits[:, 8:-1].argmax(-1), out[:, 9:])


def test_packed_layers_are_not_cut():
    model = make("bert")
    pack_(model, blocks(model)[0].down)
    with pytest.raises(TargetError, match="before layers are packed"):
        keep_units_(model, blocks(model)[0], alternating(64))


def test_a_table_that_the_model_reads_itself_stays_in_float():
    model = compress(make("deberta-v2"), QuantizeWeightsConfig())
    assert type(model.deberta.encoder.rel_embeddings) is nn.Embedding and logits(model, "deberta-v2").isfinite().all()
    with pytest.raises(TargetError, match=r"encoder\.rel_embeddings: the model reads this weight itself"):
        pack_(model, "deberta.encoder.rel_embeddings")


def test_layers_that_were_gated_stay_trainable():
    model = make("bert")
    block = blocks(model)[0]
    attach(model, block.down, ColumnGate(64, 1))
    with torch.no_grad():
        keep_units_(model, block, alternating(64))
    assert all(p.requires_grad for p in model.parameters())
    model.get_submodule(block.output).weight.requires_grad_(False)
    keep_heads_(model, block, alternating(4))
    assert not trainable(model.get_submodule(block.output))


def test_a_wrapper_sees_conv1d_as_a_matrix():
    model = make("gpt2")
    block, before = blocks(model)[0], logits(make("gpt2"), "gpt2")
    gate = attach(model, block.output, ColumnGate(4, block.head_size), as_matrix=True)
    assert find(model, block.output, ColumnGate) is gate
    assert torch.equal(logits(model, "gpt2"), before)
    gate.mask[1] = False
    untouched = make("gpt2")
    close(untouched, block.output, gate.mask, block.head_size)
    assert torch.allclose(logits(model, "gpt2"), logits(untouched, "gpt2"), atol=1e-6)
    detach(model, block.output, ColumnGate)
    assert type(model.get_submodule(block.output)) is Conv1D and torch.equal(logits(model, "gpt2"), before)


@pytest.mark.parametrize("name", ALL)
def test_every_path_a_family_names_exists(name):
    model = make(name)
    family, prefix = family_of(model), base_prefix(make(name))
    for block in blocks(model):
        assert all(has_module(model, path) for path in (block.path, *block.norms, *block.up, block.down))
        cross = block.cross
        assert cross is None or (isinstance(cross, Attention) and has_module(model, cross.output))
    assert [has_module(model, prefix + n) for n in family.outer_norms].count(True) >= 1 or name == "albert"
    words = model.get_input_embeddings()
    if isinstance(words, nn.Embedding):
        assert any(model.get_submodule(path) is words for path in embeddings_of(model, family))
    assert getattr(model.config, family.hidden_key) == (16 if name == "swin" else 32)
    key = family.embeddings.position_key
    if key and family.embeddings.position and has_module(model, prefix + family.embeddings.position):
        table = model.get_submodule(prefix + family.embeddings.position)
        assert table.num_embeddings == getattr(model.config, key)
    depth = {s.path: s.depth(model) for s in stacks_of(model, family)}
    assert sum(depth.values()) == len(blocks(model)) == {"albert": 1, "t5": 2 * LAYERS, "swin": 6}.get(name, LAYERS)


def test_every_family_has_a_tiny_model():
    assert {make(n).config.model_type for n in (*ALL, *CONVOLUTIONAL)} == set(families())


def test_calibration_batches_fit_every_model():
    for name in ALL:
        assert make(name)(**calibration(name)[0]).loss > 0


@pytest.fixture(scope="module")
def reasons():
    return support()


@pytest.mark.slow
def test_the_readme_says_which_method_works_on_which_family(reasons):
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert text == between(text, "families", families_markdown(reasons)), (
        "the table is out of date: python -m hfcompress.run.families_table --write README.md"
    )


def test_the_table_says_why_and_hides_no_fault(monkeypatch):
    assert reason_of("layers", {"keep": 1}, make("bert")) == ""
    assert "one shared block" in reason_of("layers", {"keep": 1}, make("albert"))
    assert "one column per head" in reason_of("movement", {"heads": 0.5}, make("t5"))
    assert reason_of("movement", {"ffn": 0.5}, make("t5")) == ""
    monkeypatch.setattr("hfcompress.methods.layers.droppable_stacks", lambda model, family: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reason_of("layers", {}, make("bert"))
    with pytest.raises(ValueError, match="no <!-- families -->"):
        between("text", "families", "table")
