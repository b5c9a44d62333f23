"""The model types this package knows, as data."""

from __future__ import annotations

from typing import Any

from .family import AttentionPaths, Depth, EmbeddingPaths, Family, FeedForwardPaths, ImageTokens

_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_TINY_TEXT = _TINY | {"vocab_size": 99, "max_position_embeddings": 40}
_TINY_IMAGE = _TINY | {"image_size": 16, "patch_size": 4}
_IMAGE = "AutoModelForImageClassification"


def _bert_embeddings(offset: int = 0) -> EmbeddingPaths:
    word, position, token_type = (f"embeddings.{name}_embeddings" for name in ("word", "position", "token_type"))
    return EmbeddingPaths(word, position, token_type, "max_position_embeddings", offset)


def _separate(module: str, names: str, head_size: str = "head_dim", **more: Any) -> AttentionPaths:
    """Describe projections that are all children of one module; `names`: query, key, value and output."""
    query, key, value, output = (f"{module}.{name}" for name in names.split())
    return AttentionPaths(module, query, key, value, output, head_size, **more)


_PROJ = "q_proj k_proj v_proj o_proj"
_BERT_ATTENTION = AttentionPaths(
    "attention.self", "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"
)
_BERT_FFN = (FeedForwardPaths(("intermediate.dense",), "output.dense"),)
_BERT_NORMS: dict[str, Any] = {
    "norms": ("attention.output.LayerNorm", "output.LayerNorm"),
    "outer_norms": ("embeddings.LayerNorm",),
}
_VIT_ATTENTION = _separate("attention", _PROJ)
_VIT_FFN = (FeedForwardPaths(("mlp.fc1",), "mlp.fc2"),)
_GATED_FFN = FeedForwardPaths(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
_VIT: dict[str, Any] = {
    "embeddings": EmbeddingPaths(position="embeddings.position_embeddings"),
    "norms": ("layernorm_before", "layernorm_after"),
    "outer_norms": ("layernorm",),
    "heads_key": "num_attention_heads",
    "head_size_key": "head_dim",
    "auto_class": _IMAGE,
    "tiny": _TINY_IMAGE,
}
_DROPOUT = ("dropout",)
_SHARED_BIAS = "relative_attention_bias"

_ENCODERS = (
    *(
        Family(
            model_type,
            "encoder.layer",
            _BERT_ATTENTION,
            _BERT_FFN,
            _bert_embeddings(offset),
            **_BERT_NORMS,
            tiny=_TINY_TEXT | tiny,
        )
        for model_type, offset, tiny in (
            ("bert", 0, {}),
            ("roberta", 2, {}),
            ("xlm-roberta", 2, {}),
            ("electra", 0, {"embedding_size": 16}),
        )
    ),
    Family(
        "distilbert",
        "transformer.layer",
        _separate("attention", "q_lin k_lin v_lin out_lin", "attention_head_size"),
        (FeedForwardPaths(("ffn.lin1",), "ffn.lin2"),),
        EmbeddingPaths(
            "embeddings.word_embeddings", "embeddings.position_embeddings", position_key="max_position_embeddings"
        ),
        norms=("sa_layer_norm", "output_layer_norm"),
        outer_norms=("embeddings.LayerNorm",),
        depth=Depth(("n_layers",)),
        hidden_key="dim",
        ffn_key="hidden_dim",
        tiny={
            "vocab_size": 99,
            "max_position_embeddings": 40,
            "dim": 32,
            "n_layers": 3,
            "n_heads": 4,
            "hidden_dim": 64,
        },
    ),
    Family(
        "mpnet",
        "encoder.layer",
        _separate(
            "attention.attn",
            "q k v o",
            "attention_head_size",
            shared_tables=(f"encoder.{_SHARED_BIAS}",),
            widths=("all_head_size",),
        ),
        _BERT_FFN,
        EmbeddingPaths(
            "embeddings.word_embeddings",
            "embeddings.position_embeddings",
            position_key="max_position_embeddings",
            position_offset=2,
        ),
        norms=("attention.LayerNorm", "output.LayerNorm"),
        outer_norms=("embeddings.LayerNorm",),
        depth=Depth(returns=()),
        tiny=_TINY_TEXT,
    ),
    Family(
        "albert",
        "encoder.albert_layer_groups.*.albert_layers",
        _separate("attention", "query key value dense", "attention_head_size"),
        (FeedForwardPaths(("ffn",), "ffn_output"),),
        _bert_embeddings(),
        norms=("attention.LayerNorm", "full_layer_layer_norm"),
        outer_norms=("embeddings.LayerNorm",),
        depth=Depth(refused="all its layers are one shared block, so none can leave the file"),
        tiny=_TINY_TEXT | {"embedding_size": 16},
    ),
    Family(
        "deberta-v2",
        "encoder.layer",
        AttentionPaths(
            "attention.self",
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.value_proj",
            "attention.output.dense",
            more=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
            counts=("num_attention_heads",),
            widths=("all_head_size",),
        ),
        _BERT_FFN,
        _bert_embeddings(),
        norms=("attention.output.LayerNorm", "output.LayerNorm"),
        outer_norms=("embeddings.LayerNorm", "encoder.LayerNorm"),
        direct=("encoder.rel_embeddings",),
        depth=Depth(returns=(None,), refused_if=(("conv_kernel_size", "a convolution follows its first block"),)),
        tiny=_TINY_TEXT
        | {
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
    ),
)

_T5_NORM = "layer.0.layer_norm"
_T5_FFN = tuple(
    FeedForwardPaths(tuple(f"layer.{i}.DenseReluDense.{up}" for up in ups), f"layer.{i}.DenseReluDense.wo")
    for i in (1, 2)
    for ups in (("wi_0", "wi_1"), ("wi",))
)
_T5_BIASES = tuple(f"{s}.block.0.layer.0.SelfAttention.{_SHARED_BIAS}" for s in ("encoder", "decoder"))
_GENERATORS = (
    Family(
        "gpt2",
        "h",
        AttentionPaths(
            "attn",
            *("attn.c_attn",) * 3,
            output="attn.c_proj",
            head_size="head_dim",
            counts=("num_heads",),
            widths=("split_size",),
        ),
        (FeedForwardPaths(("mlp.c_fc",), "mlp.c_proj"),),
        EmbeddingPaths("wte", "wpe", position_key="n_positions"),
        norms=("ln_1", "ln_2"),
        outer_norms=("ln_f",),
        depth=Depth(
            ("n_layer",),
            refused_if=(("scale_attn_by_inverse_layer_idx", "every block scales its attention by its own index"),),
        ),
        hidden_key="n_embd",
        ffn_key="n_inner",
        tiny={
            "vocab_size": 99,
            "n_positions": 40,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
    *(
        Family(
            model_type,
            "layers",
            _separate("self_attn", _PROJ),
            (_GATED_FFN,),
            EmbeddingPaths("embed_tokens"),
            norms=("input_layernorm", "post_attention_layernorm"),
            outer_norms=("norm",),
            depth=Depth(lists=lists),
            heads_key="num_attention_heads",
            head_size_key="head_dim",
            key_heads_key="num_key_value_heads",
            tiny=_TINY_TEXT | {"num_attention_heads": 8, "num_key_value_heads": 4, "pad_token_id": 0, **tiny},
        )
        for model_type, lists, tiny in (
            ("llama", (), {}),
            ("qwen2", ("layer_types",), {}),
            ("qwen3", ("layer_types",), {"head_dim": 8}),
        )
    ),
    Family(
        "t5",
        ("encoder.block", "decoder.block"),
        _separate("layer.0.SelfAttention", "q k v o", "key_value_proj_dim", shared_tables=_T5_BIASES),
        _T5_FFN,
        EmbeddingPaths("shared"),
        cross=_separate("layer.1.EncDecAttention", "q k v o", "key_value_proj_dim", shared_tables=_T5_BIASES),
        norms=(_T5_NORM, "layer.1.layer_norm"),
        outer_norms=("encoder.final_layer_norm", "decoder.final_layer_norm"),
        depth=Depth(
            ("num_layers", "num_decoder_layers"),
            first_stays="it holds the position bias of its whole stack",
            returns=(2, 5),
        ),
        hidden_key="d_model",
        ffn_key="d_ff",
        tiny={
            "vocab_size": 99,
            "d_model": 32,
            "num_layers": 3,
            "num_decoder_layers": 3,
            "num_heads": 4,
            "d_kv": 8,
            "d_ff": 64,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": 0,
        },
    ),
)

_TABLE = "relative_position_bias.relative_position_bias_table"
_IMAGES = (
    Family(
        "vit",
        "layers",
        _VIT_ATTENTION,
        _VIT_FFN,
        image_tokens=ImageTokens(1, "mlp", _DROPOUT, _DROPOUT),
        **_VIT,
    ),
    Family(
        "deit",
        "layers",
        _VIT_ATTENTION,
        _VIT_FFN,
        image_tokens=ImageTokens(2, "mlp", _DROPOUT, _DROPOUT),  # the second learned from a teacher
        **_VIT,
    ),
    Family(
        "dinov2",
        "encoder.layer",
        _VIT_ATTENTION,
        (*_VIT_FFN, _GATED_FFN),
        **_VIT | {"norms": ("norm1", "norm2"), "tiny": _TINY_IMAGE | {"mlp_ratio": 2}},
        image_tokens=ImageTokens(1, "mlp", ("layer_scale1", "drop_path"), ("layer_scale2", "drop_path")),
        ffn_key=None,  # it is `hidden_size * mlp_ratio`, an integer ratio
    ),
    Family(
        "beit",
        "layers",
        _separate("attention", _PROJ, tables=(_TABLE,), shared_tables=("shared_position_bias",)),
        _VIT_FFN,
        image_tokens=ImageTokens(1, "mlp", ("dropout", "lambda_1", "drop_path"), ("dropout", "lambda_2", "drop_path")),
        **_VIT
        | {
            "outer_norms": ("layernorm", "pooler.layernorm"),
            "tiny": _TINY_IMAGE | {"use_relative_position_bias": True},
        },
    ),
    Family(
        "swin",
        "encoder.layers.*.blocks",
        _separate("attention", _PROJ, tables=(f"attention.{_TABLE}",)),
        _VIT_FFN,
        EmbeddingPaths(position="embeddings.position_embeddings"),
        norms=("layernorm_before", "layernorm_after"),
        outer_norms=("embeddings.norm", "layernorm"),
        depth=Depth(("depths",), step=2, returns=(None,)),  # every other block shifts its windows
        hidden_key="embed_dim",
        ffn_key=None,  # it is the stage's width times `mlp_ratio`
        auto_class=_IMAGE,
        tiny={
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 4],
            "num_heads": [2, 4],
            "window_size": 4,
            "mlp_ratio": 2.0,
        },
    ),
)

KNOWN: tuple[Family, ...] = (*_ENCODERS, *_GENERATORS, *_IMAGES)
