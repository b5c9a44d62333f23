"""Depth pruning on every family: what is left is a shallower stock model that answers as if blocks were skipped."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import LAYERS, TRANSFORMERS, auto_class, batch, calibration, logits, make
from torch import nn

from hfcompress import compress
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import FamilyError, LifecycleError, RecipeError, TargetError
from hfcompress.core.families import blocks_of, family_of, stacks_of
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.registry import create
from hfcompress.methods.layers import Layers, LayersConfig
from hfcompress.methods.quantize_weights import QuantizeWeightsConfig

ALL = tuple(n for n in TRANSFORMERS if n != "albert")


def lifecycle(training: bool = True, **settings) -> Lifecycle:
    return Lifecycle([create("layers", settings)], training=training)


def kept(name: str, **settings) -> list[list[int]]:
    """Return the indices of the blocks each stack keeps."""
    model, cycle = make(name), lifecycle(training=False, **settings)
    cycle.prepare(model)
    if cycle.needs_calibration:
        cycle.observe(model, lambda: calibration(name))
    cycle.finalize(model)
    return cycle.methods[0]._kept


@pytest.mark.parametrize("name", ALL)
def test_dropped_is_what_was_skipped(name, tmp_path):
    model, before = make(name), logits(make(name), name)
    cycle = lifecycle(keep=2, choose="top")
    cycle.prepare(model)
    cycle.step(model, 0.0)
    assert torch.equal(logits(model, name), before)
    cycle.step(model, 0.1)
    skipped = logits(model, name)
    assert not torch.allclose(skipped, before, atol=1e-3)
    stacks = len(stacks_of(model, family_of(model)))
    report = cycle.finalize(model)["layers"]
    assert torch.equal(logits(model, name), skipped)
    assert len(blocks_of(model, family_of(model))) == report["blocks_after"] == 2 * stacks
    assert not any("forward" in vars(m) for m in model.modules())
    save_checkpoint(model, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    loaded = load_model(tmp_path, auto_class(name))
    assert torch.allclose(logits(loaded, name), skipped, atol=1e-6)
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_which_blocks_stay():
    assert kept("bert", keep=2, choose="top") == [[0, 1]]
    assert kept("bert", keep=2, choose="bottom") == [[1, 2]]
    assert kept("bert", keep=0.67, choose="every_other") == [[0, 1]]
    assert kept("bert", keep=1, choose="every_other") == [[0]]
    assert kept("t5", keep=2, choose="bottom") == [[0, 2], [0, 2]], "the first holds the bias of all"
    assert kept("swin", keep=2, choose="bottom") == [[0, 1], [2, 3]], "shifted windows alternate"
    deep = nn.ModuleList(nn.Identity() for _ in range(12))
    method = create("layers", {"keep": 6, "choose": "every_other"})
    method._family = family_of(make("bert"))
    assert method._of(stacks_of(make("bert"), method._family)[0], len(deep), {}) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("name", ["bert", "t5", "swin", "llama-lm"])
def test_importance_drops_the_block_that_changes_least(name):
    for idle in (1, 2) if name != "swin" else (1,):
        model = make(name)
        stacks = stacks_of(model, family_of(model))
        step = 2 if name == "swin" else 1
        with torch.no_grad():  # a block that hardly adds anything to what passes by
            for block in blocks_of(model, family_of(model)):
                if block.path in [f"{s.path}.{idle * step + i}" for s in stacks for i in range(step)]:
                    projections = [block.output, block.down, *([block.cross.output] if block.cross else [])]
                    for path in projections:
                        for parameter in model.get_submodule(path).parameters():
                            parameter.mul_(1e-3)
        cycle = lifecycle(training=False, keep=2)
        cycle.prepare(model)
        cycle.observe(model, lambda: calibration(name))
        assert not any(m._forward_hooks for m in model.modules())
        dropped = set(cycle.methods[0]._skips)
        assert dropped == {
            f"{s.path}.{i}" for s in stacks for i in range(s.depth(model)) if i // step == idle and s.depth(model) > 2
        }


def test_influence_counts_real_tokens_only():
    """Padding that a block changes much must not make it look important."""
    influence = []
    for pad in (0, 5):
        model, cycle = make("bert"), lifecycle(training=False, keep=2)
        cycle.prepare(model)
        ids = batch("bert")["input_ids"]
        mask = torch.ones_like(ids)
        if pad:
            ids = torch.cat([ids, torch.full((len(ids), pad), 7)], 1)
            mask = torch.cat([mask, torch.zeros(len(ids), pad, dtype=torch.long)], 1)
        seen = {}
        choose = cycle.methods[0]._choose
        cycle.methods[0]._choose = lambda m, i, seen=seen, choose=choose: (seen.update(i), choose(m, i))
        cycle.observe(model, lambda ids=ids, mask=mask: [{"input_ids": ids, "attention_mask": mask}])
        influence.append(list(seen.values()))
    assert influence[0] == pytest.approx(influence[1], abs=1e-5) and min(influence[0]) > 0


@pytest.mark.parametrize("name", ["gpt2-lm", "llama-lm"])
def test_generating_with_the_cache_still_works(name):
    model = compress(make(name), LayersConfig(keep=2, choose="bottom"))
    ids = batch(name)["input_ids"]
    out = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        assert torch.equal(model(out).logits[:, 8:-1].argmax(-1), out[:, 9:])


def test_lists_by_layer_shrink_with_it():
    model = make("qwen2")
    config = type(model.config)(
        **model.config.to_dict()
        | {
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "sliding_window": 3,
            "use_sliding_window": True,
        }
    )
    model = compress(type(model)(config), LayersConfig(keep=2, choose="bottom"))
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    swin = compress(make("swin"), LayersConfig(keep=2, choose="top"))
    assert swin.config.depths == [2, 2]
    t5 = compress(make("t5"), LayersConfig(keep=2, choose="top"))
    assert (t5.config.num_layers, t5.config.num_decoder_layers) == (2, 2)
    assert t5.transformer.encoder.config.num_layers == 2


def test_hidden_states_while_skipping():
    model, cycle = make("bert"), lifecycle(keep=2, choose="top")
    cycle.prepare(model)
    cycle.step(model, 0.5)
    states = model(**batch("bert"), output_hidden_states=True).hidden_states
    assert len(states) == LAYERS + 1 and torch.equal(states[-1], states[-2])


def test_refusals():
    with pytest.raises(FamilyError, match="no block can be dropped: all its layers are one shared block"):
        compress(make("albert"), LayersConfig(choose="top"))
    gpt2 = make("gpt2")
    gpt2.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(FamilyError, match="scales its attention by its own index"):
        compress(gpt2, LayersConfig(choose="top"))
    with pytest.raises(TargetError, match="keep: 3 leaves every block of 3"):
        compress(make("bert"), LayersConfig(keep=3, choose="top"))
    with pytest.raises(TargetError, match=r"keep: 0.9 leaves every block of 2 \+ 4; only 2 adjacent blocks"):
        compress(make("swin"), LayersConfig(keep=0.9, choose="top"))
    with pytest.raises(LifecycleError, match="calibration"):
        compress(make("bert"), LayersConfig(keep=2))
    with pytest.raises(LifecycleError, match="a stage of its own"):
        compress(make("bert"), [LayersConfig(keep=2, choose="top"), QuantizeWeightsConfig()])
    for wrong in (0, 1.5, -1, 0.0):
        with pytest.raises(RecipeError):
            create("layers", {"keep": wrong})


def test_the_class_is_exported():
    import hfcompress

    assert hfcompress.LayersConfig is Layers.Config
