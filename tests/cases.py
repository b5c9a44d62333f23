"""One entry per method: how the contract test sets it up and counts what it did."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from hfcompress.checkpoint import save_checkpoint
from hfcompress.core.families import blocks_of, family_of

Report = Mapping[str, float]


@dataclass(frozen=True)
class MethodCase:
    """Settings for the tiny models, and an independent count of what the method reports."""

    settings: dict[str, Any] = field(default_factory=dict)
    expected_report: Callable[[nn.Module, nn.Module], Report] = lambda base, model: {}
    refuses: Mapping[str, str] = field(default_factory=dict)  # tiny model: what the reason for refusing it has to match
    same_size: bool = False  # it gives back what was lost, and saves nothing itself
    other_inputs: bool = False  # the same example is another input afterwards, so answers cannot be compared
    same_answers: bool = False  # what it removes was not used by the test's inputs


def count_structure(base: nn.Module, model: nn.Module) -> Report:
    """Count heads and units from the shapes in the state dict."""

    def sizes(of: nn.Module) -> tuple[list[int], list[int]]:
        blocks, state = blocks_of(of, family_of(of)), of.state_dict()
        axis = 0 if "transformer.h.0.attn.c_attn.weight" in state else 1  # GPT-2 keeps its weights as (in, out)
        heads = [state[f"{b.output}.weight"].shape[axis] // b.head_size for b in blocks]
        return heads, [state[f"{b.down}.weight"].shape[axis] for b in blocks]

    (heads, units), (heads_left, units_left) = sizes(base), sizes(model)
    return {
        "heads_before": sum(heads),
        "heads_after": sum(heads_left),
        "units_before": sum(units),
        "units_after": sum(units_left),
        **{f"layer{i}_heads": n for i, n in enumerate(heads_left)},
        **{f"layer{i}_units": n for i, n in enumerate(units_left)},
    }


def count_part(part: str) -> Callable[[nn.Module, nn.Module], Report]:
    """Return `count_structure` of heads or units alone."""

    def count(base: nn.Module, model: nn.Module) -> Report:
        return {key: value for key, value in count_structure(base, model).items() if part in key}

    return count


def count_packed(base: nn.Module, model: nn.Module) -> Report:
    """Count the codes in the state dict, and compare their number with the layers of the base model."""
    state = model.state_dict()
    packed = [name for name in state if name.endswith(".weight_codes")]
    layers = [m for m in base.modules() if isinstance(m, nn.Linear | nn.Embedding | nn.Conv2d)]
    outputs = [m for m in layers if getattr(m, "out_features", 0) == base.config.num_labels]
    assert len(packed) == len(layers) - len(outputs)
    weights = sum(m.weight.numel() for m in layers) - sum(m.weight.numel() for m in outputs)
    stored = sum(state[name].nbytes for name in packed)
    stored += sum(state[name.replace("_codes", "_scale")].nbytes for name in packed)
    return {"layers": len(packed), "weights": weights, "bits_per_weight": round(8 * stored / weights, 4)}


def count_blocks(base: nn.Module, model: nn.Module) -> Report:
    """Count the blocks of both state dicts, and find each of the base model's in the other by its first weight."""
    before, after = (
        [of.state_dict()[f"{b.output}.weight"] for b in blocks_of(of, family_of(of))] for of in (base, model)
    )
    kept = [any(w.shape == other.shape and torch.equal(w, other) for other in after) for w in before]
    return {
        "blocks_before": len(before),
        "blocks_after": len(after),
        **{f"block{i}_kept": k for i, k in enumerate(kept)},
    }


def count_rows_of_positions(base: nn.Module, model: nn.Module) -> Report:
    """Count the rows of the one position table in each state dict."""
    before, after = (
        max(t.shape[-2] for name, t in m.state_dict().items() if "position_embeddings" in name) for m in (base, model)
    )
    return {"positions_before": before, "positions_after": after}


def count_width(base: nn.Module, model: nn.Module) -> Report:
    """Count the columns of the projections that read the hidden state, and the entries of the norms beside them."""
    counts = []
    for of in (base, model):
        state = of.state_dict()
        blocks = blocks_of(of, family_of(of))
        widths = {state[f"{path}.weight"].shape[1] for b in blocks for path in (b.query, b.value, *b.up)}
        widths |= {state[f"{path}.weight"].shape[0] for b in blocks for path in (b.output, b.down, *b.norms)}
        assert len(widths) == 1
        counts += widths
    return dict(zip(("width_before", "width_after"), counts, strict=True))


def count_nf4(base: nn.Module, model: nn.Module) -> Report:
    """Count the 4-bit layers of the state dict, their weights in the base model, and the bytes of their tensors."""
    state, before = model.state_dict(), base.state_dict()
    weights = [key.removesuffix(".quant_state.bitsandbytes__nf4") for key in state if key.endswith("__nf4")]
    downs = () if base.config.model_type == "t5" else [b.down for b in blocks_of(base, family_of(base))]
    assert {f"{path}.weight" for path in downs} <= set(weights)
    tensors = [t for key, t in state.items() if any(key == w or key.startswith(f"{w}.") for w in weights)]
    return {
        "layers": len(weights),
        "weights": sum(before[w].numel() for w in weights),
        "bits": 4,
        "bytes": sum(t.numel() * t.element_size() for t in tensors),
    }


def count_zeros(base: nn.Module, model: nn.Module) -> Report:
    """Count, over the linear layers in numbered blocks, weights that are zero or left out of the state dict."""
    state, counts = model.state_dict(), {"layers": 0, "weights": 0, "zeros": 0, "stored_sparse": 0}
    for path, layer in base.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and re.search(r"\.\d+\.", path):
            sparse = f"{path}.weight_mask" in state
            counts["layers"] += 1
            counts["weights"] += layer.weight.numel()
            counts["zeros"] += layer.weight.numel() - int(state[f"{path}.weight"].count_nonzero())
            counts["stored_sparse"] += sparse
    return counts


def count_rounded(base: nn.Module, model: nn.Module) -> Report:
    """Count the codes in the state dict: those of linear layers in numbered blocks, and of embeddings."""
    state = model.state_dict()
    layers = [m for p, m in base.named_modules() if isinstance(m, nn.Linear | Conv1D) and re.search(r"\.\d+\.", p)]
    layers += [m for m in base.modules() if isinstance(m, nn.Embedding)]
    weights = sum(m.weight.numel() for m in layers)
    stored = sum(t.nbytes for name, t in state.items() if name.endswith(("_codes", "_scale", "_mask")))
    packed = sum(name.endswith("_codes") for name in state)
    assert packed == len(layers)
    return {"layers": packed, "weights": weights, "bits_per_weight": round(8 * stored / weights, 4)}


def count_static(base: nn.Module, model: nn.Module) -> Report:
    """Count packed layers and input grids in the state dict.

    Smoothed: output projections, and in image models, where nothing else reads the norms, what widens or attends.
    """
    state, before = model.state_dict(), base.state_dict()
    codes = [name.removesuffix("_codes") for name in state if name.endswith(".weight_codes")]
    blocks = blocks_of(base, family_of(base))
    behind_norms = [3 + len(b.up) for b in blocks] if base.main_input_name == "pixel_values" else []
    return {
        "layers": len(codes),
        "weights": sum(before[name].numel() for name in codes),
        "layers_with_quantized_inputs": sum(name.endswith(".input_scale") for name in state),
        "layers_with_smoothed_inputs": len(blocks) + sum(behind_norms),
    }


def count_trained(base: nn.Module, model: nn.Module) -> Report:
    """Count codes and input grids in the state dict, and the bytes of everything stored for weights."""
    state, before = model.state_dict(), base.state_dict()
    codes = [name.removesuffix("_codes") for name in state if name.endswith(".weight_codes")]
    weights = sum(before[name].numel() for name in codes)
    stored = sum(t.nbytes for name, t in state.items() if any(name.startswith(f"{c}_") for c in codes))
    grids = sum(name.endswith(".input_scale") for name in state)
    tables = sum(isinstance(module, nn.Embedding) for module in base.modules())
    return {
        "layers": len(codes),
        "weights": weights,
        "bits_per_weight": round(8 * stored / weights, 4),
        "layers_with_quantized_inputs": grids,
        "layers_with_float_inputs": len(codes) - tables - grids,
    }


def count_tokens(base: nn.Module, model: nn.Module) -> Report:
    """Count the rows of the word table of each state dict; the test's corpus is the training data itself."""
    before, after = (
        next(t for name, t in m.state_dict().items() if "word_embeddings" in name).shape[0] for m in (base, model)
    )
    return {"tokens_before": before, "tokens_after": after, "corpus_covered": 1.0}


def count_pixels(base: nn.Module, model: nn.Module) -> Report:
    """Tell the side of the image from the places in the position table; the examples have 16 pixels."""
    places = next(t for name, t in model.state_dict().items() if "position_embeddings" in name).shape[1]
    return {"pixels_before": 16, "pixels_after": math.isqrt(places) * model.config.patch_size}


def count_mixed(base: nn.Module, model: nn.Module) -> Report:
    """Count the codes in the state dict by their bits, which are what they take per weight of the base model."""
    state = {t.data_ptr(): (name, t) for name, t in model.state_dict().items()}  # tied layers once
    state, before = dict(state.values()), base.state_dict()
    sizes = {name: before[name.removesuffix("_codes")].numel() for name in state if name.endswith("_codes")}
    bits = [round(8 * state[name].nbytes / size) for name, size in sizes.items()]
    stored = sum(t.nbytes for name, t in state.items() if name.endswith(("_codes", "_scale", "_mask")))
    assert set(bits) <= {2, 4, 8} and 8 * stored <= 5 * sum(sizes.values())
    return {
        "layers": len(sizes),
        "weights": sum(sizes.values()),
        "bits_per_weight": round(8 * stored / sum(sizes.values()), 4),
        **{f"layers_{b}_bits": bits.count(b) for b in (2, 4, 8)},
    }


def count_clustered(base: nn.Module, model: nn.Module) -> Report:
    """Count codes of 3 bits and 8 words of 16 bits per layer from the shapes of the base model."""
    state = model.state_dict()
    layers = [m for m in base.modules() if isinstance(m, nn.Linear | nn.Embedding | nn.Conv2d)]
    sizes = [m.weight.numel() for m in layers if getattr(m, "out_features", 0) != base.config.num_labels]
    assert sum(name.endswith(".weight_words") for name in state) == len(sizes)
    stored = sum(math.ceil(size * 3 / 8) + 8 * 2 for size in sizes)
    counted = {"layers": len(sizes), "weights": sum(sizes), "bits_per_weight": round(8 * stored / sum(sizes), 4)}
    return counted | {"layers_left_whole": 0}


def count_shared(base: nn.Module, model: nn.Module) -> Report:
    """Count the entries of the state dict that are another one's memory; of three blocks the first two share."""
    state = model.state_dict()
    distinct = {t.data_ptr(): t for t in state.values()}
    saved = sum(t.numel() for t in state.values()) - sum(t.numel() for t in distinct.values())
    return {"blocks": len(blocks_of(base, family_of(base))), "groups": 1, "parameters_saved": saved}


def count_product(base: nn.Module, model: nn.Module) -> Report:
    """Count codes of 4 bits per 4 weights, and 16 words of 4 numbers for every 4 columns; only the word table gains."""
    state, weight = model.state_dict(), base.get_input_embeddings().weight
    assert sum(name.endswith(".weight_words") for name in state) == 1
    stored = weight.numel() // 4 // 2 + 16 * weight.shape[1] * 2
    return {"layers": 1, "weights": weight.numel(), "bits_per_weight": round(8 * stored / weight.numel(), 4)}


def count_hashed(base: nn.Module, model: nn.Module) -> Report:
    """Count the rows of both small tables: 9 remainders, and one for every 9 of the 99 tokens."""
    state, before = model.state_dict(), base.get_input_embeddings().weight
    small = [t for name, t in state.items() if name.endswith((".quotients", ".remainders"))]
    assert sorted(len(t) for t in small) == [9, math.ceil(len(before) / 9)]
    return {"rows": len(before), "numbers_before": before.numel(), "numbers_after": sum(t.numel() for t in small)}


def count_streams(base: nn.Module, model: nn.Module) -> Report:
    """Count the tensors that the file holds otherwise than the state dict, and the bytes of both."""
    with TemporaryDirectory() as folder:
        stored = load_file(save_checkpoint(model, folder) / "model.safetensors")
    state = {t.data_ptr(): t for t in model.state_dict().values()}.values()
    coded = [t for t in stored.values() if t.dtype == torch.uint8]
    plain = sum(t.nbytes for t in stored.values()) - sum(t.nbytes for t in coded)
    return {
        "tensors": len(coded),
        "bytes_before": sum(t.nbytes for t in state) - plain,
        "bytes_after": sum(t.nbytes for t in coded),
    }


def count_separable(base: nn.Module, model: nn.Module) -> Report:
    """Count the pairs in the state dict, their weights, and those of the kernels they stand for."""
    state, before = model.state_dict(), base.state_dict()
    pairs = [name.removesuffix(".depthwise.weight") for name in state if name.endswith(".depthwise.weight")]
    return {
        "convolutions": len(pairs),
        "weights_before": sum(before[f"{p}.weight"].numel() for p in pairs),
        "weights_after": sum(state[f"{p}.{part}wise.weight"].numel() for p in pairs for part in ("depth", "point")),
    }


def count_split(base: nn.Module, model: nn.Module) -> Report:
    """Count factors in the state dict against the weights of linear layers in numbered blocks of the base model."""
    state = model.state_dict()
    layers = {p: m for p, m in base.named_modules() if isinstance(m, nn.Linear | Conv1D) and re.search(r"\.\d+\.", p)}
    ranks = {p: state[f"{p}.down.weight"].shape[0] for p in layers if f"{p}.down.weight" in state}
    assert ranks.keys() == {name.removesuffix(".down.weight") for name in state if name.endswith(".down.weight")}
    before = sum(m.weight.numel() for m in layers.values())
    left = sum(state[f"{p}.weight"].numel() for p in layers)  # a split layer's own is empty
    left += sum(state[f"{p}.{part}.weight"].numel() for p in ranks for part in ("down", "up"))
    assert left <= 0.6 * before
    return {
        "layers": len(ranks),
        "layers_left_whole": len(layers) - len(ranks),
        "weights_before": before,
        "weights_after": left,
        "rank_min": min(ranks.values()),
        "rank_max": max(ranks.values()),
    }


def count_tables(base: nn.Module, model: nn.Module) -> Report:
    """Count the token table of the base model, and the factors in the state dict; the corpus is the training data."""
    before = base.get_input_embeddings().weight.numel()
    factors = [t for name, t in model.state_dict().items() if re.search(r"word_embeddings\.(up|down)\.", name)]
    after, tokens = sum(t.numel() for t in factors), 24 * 9
    return {"tables": 1, "rank": 4, "weights_before": before, "weights_after": after, "corpus_tokens": tokens}


def count_adapters(base: nn.Module, model: nn.Module) -> Report:
    """Count the linear layers in numbered blocks that changed, and what adapters of rank 2 on them take."""
    before, after = base.state_dict(), model.state_dict()
    names = [
        f"{p}.weight" for p, m in base.named_modules() if isinstance(m, nn.Linear | Conv1D) and re.search(r"\.\d+\.", p)
    ]
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(names)
    return {"merged": len(names), "kept": 0, "trained_parameters": sum(2 * sum(before[name].shape) for name in names)}


def count_kernels(base: nn.Module, model: nn.Module) -> Report:
    """Count the one convolution of the base model, and its factors in the state dict."""
    ((path, layer),) = [(p, m) for p, m in base.named_modules() if isinstance(m, nn.Conv2d)]
    factors = [t for n, t in model.state_dict().items() if n.startswith(f"{path}.") and not n.endswith("bias")]
    after = sum(t.numel() for t in factors)
    assert len(factors) >= 4 and after <= 0.5 * layer.weight.numel()
    return {"layers": 1, "weights_before": layer.weight.numel(), "weights_after": after}


@torch.no_grad()
def count_merged(base: nn.Module, model: nn.Module) -> Report:
    """Count the tokens that reach every block's feed-forward layers, on an image of the size the config says."""
    counts: list[int] = []
    for of in (base, model):
        for block in blocks_of(of, family_of(of)):
            layer = of.get_submodule(block.down)
            layer.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1]))
        size = of.config.image_size
        of(pixel_values=torch.zeros(1, 3, size, size))
        for block in blocks_of(of, family_of(of)):
            of.get_submodule(block.down)._forward_pre_hooks.clear()
    blocks = len(counts) // 2
    assert len(set(counts[:blocks])) == 1
    return {"tokens_before": counts[0], **{f"block{i}_tokens": n for i, n in enumerate(counts[blocks:])}}


CASES: dict[str, MethodCase] = {
    **dict.fromkeys(
        ("tucker", "cp"),
        MethodCase(
            {"keep": 0.5},
            count_kernels,
            refuses=dict.fromkeys(("bert", "distilbert", "roberta"), "has no convolution"),
        ),
    ),
    "factorize_embeddings": MethodCase(
        {"rank": 4}, count_tables, refuses=dict.fromkeys(("vit", "deit", "dinov2", "dinov2-swiglu"), "no token table")
    ),
    "lora": MethodCase({"r": 2}, count_adapters, same_size=True),
    **dict.fromkeys(("svd", "weighted_svd", "activation_svd"), MethodCase({"keep": 0.6, "round_to": 2}, count_split)),
    "bitsandbytes": MethodCase({"mode": "nf4"}, count_nf4),
    "cluster_weights": MethodCase({"clusters": 8, "rows": None}, count_clustered),
    "entropy_coding": MethodCase({}, count_streams, same_answers=True),
    "product_quantization": MethodCase(
        {"dim": 4, "codewords": 16, "targets": ["re:.*word_embeddings"]},
        count_product,
        refuses=dict.fromkeys(("vit", "deit", "dinov2", "dinov2-swiglu"), "no embedding table"),
    ),
    "hash_embeddings": MethodCase(
        {"buckets": 9},
        count_hashed,
        refuses=dict.fromkeys(("vit", "deit", "dinov2", "dinov2-swiglu"), "no plain table"),
    ),
    "tie_embeddings": MethodCase(
        {"init": "input"},
        refuses=dict.fromkeys(
            ("bert", "distilbert", "roberta", "vit", "deit", "dinov2", "dinov2-swiglu"), "logits per token"
        ),
    ),  # on models with tokens on both sides in test_sharing.py
    "mixed_bits": MethodCase({"average_bits": 5, "choices": [2, 4, 8], "clip": "max"}, count_mixed),
    "movement": MethodCase({"heads": 0.5, "ffn": 0.5, "score_learning_rate": 0.1, "round_to": 4}, count_structure),
    "layers": MethodCase(
        {"keep": 2, "choose": "top"},
        count_blocks,
        refuses={"albert": "no block can be dropped: all its layers are one"},
    ),
    "heads": MethodCase({"remove": 0.5}, count_part("heads")),
    "ffn": MethodCase({"remove": 0.5, "round_to": 4}, count_part("units")),
    "depthwise_separable": MethodCase(
        {}, count_separable, refuses=dict.fromkeys(("bert", "distilbert", "roberta"), "has no convolution larger than")
    ),
    "channels": MethodCase(
        {"remove": 0.4, "round_to": 2},
        refuses={
            **dict.fromkeys(("bert", "distilbert", "roberta"), "has no convolution"),
            **dict.fromkeys(("vit", "deit", "dinov2", "dinov2-swiglu"), "is a transformer"),
        },
    ),  # on convolutional networks in test_convolutional.py, as is this one
    "fold_batchnorm": MethodCase(
        refuses=dict.fromkeys(
            ("bert", "distilbert", "roberta", "vit", "deit", "dinov2", "dinov2-swiglu"), "has no BatchNorm"
        ),
        same_answers=True,
    ),
    "distill": MethodCase({"logits": 0.5, "hidden": 0.5}),
    "positions": MethodCase(
        {"length": 16, "image_size": 16},
        count_rows_of_positions,
        refuses={
            **dict.fromkeys(("vit", "deit"), "no table of learned positions"),
            "dinov2": "need all 17 positions",  # dinov2-swiglu has more than its inputs need
        },
        same_answers=True,
    ),
    "image_size": MethodCase(
        {"pixels": 8},
        count_pixels,
        refuses=dict.fromkeys(("bert", "distilbert", "roberta"), "takes no images"),
        other_inputs=True,
    ),
    "qat": MethodCase({"bits": 4, "start": 0.0}, count_trained),
    "quantize_weights": MethodCase({}, count_packed),
    "smooth_quant": MethodCase({}, count_static),
    "vocabulary": MethodCase(
        {},
        count_tokens,
        refuses=dict.fromkeys(("vit", "deit", "dinov2", "dinov2-swiglu"), "token"),
        same_answers=True,
    ),
    "token_merging": MethodCase(
        {"remove": 2},
        count_merged,
        refuses=dict.fromkeys(("bert", "distilbert", "roberta"), "not the patches of one image"),
        same_size=True,
    ),
    "width": MethodCase({"keep": 0.75}, count_width),
    "share_layers": MethodCase({"group": 2}, count_shared),
    "magnitude": MethodCase({"sparsity": 0.5}, count_zeros),
    "n_m": MethodCase({"n": 2, "m": 4}, count_zeros),
    "wanda": MethodCase({"sparsity": 0.5}, count_zeros),
    "sparsegpt": MethodCase({"sparsity": 0.5}, count_zeros),
    "gptq": MethodCase({"bits": 4, "group_size": 16, "embedding_bits": 4}, count_rounded),
}

# further settings of a method that the contract has to hold for, by what they are about
VARIANTS: dict[str, dict[str, MethodCase]] = {
    "channels": {
        "slimming": MethodCase(
            {"remove": 0.4, "round_to": 2, "importance": "slimming", "penalty": 0.01}, refuses=CASES["channels"].refuses
        )
    },
    "depthwise_separable": {
        "weights": MethodCase(
            {"fit": "weights", "multiplier": 2},
            count_separable,
            refuses=dict.fromkeys(("bert", "distilbert", "roberta"), "has no convolution larger than"),
        )
    },
    "distill": {
        "inside": MethodCase(
            {
                "logits": {"weight": 0.5, "loss": "mse", "schedule": {"shape": "linear", "start": 0, "end": 1}},
                "task": 0.5,
                "hard": 0.1,
                "hidden": {"layers": "nearest"},
                "cosine": 0.5,
                "maps": 0.5,
                "attention": {"loss": "scores"},
                "relations": {"of": ["query", "key", "value", "query_key"], "heads": 2, "layers": {0: 0, 2: -1}},
            }
        )
    },
}
