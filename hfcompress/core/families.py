"""Where heads, feed-forward units, embeddings and norms live, as data per model type.

A new architecture is one `register_family` call; nothing else in the package knows a model by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .errors import FamilyError, nearest


@dataclass(frozen=True)
class AttentionPaths:
    """Paths inside one block: the module that knows the head size, and the four projections."""

    module: str
    query: str
    key: str
    value: str
    output: str
    head_size: str = "attention_head_size"  # attribute of `module`: width of one head, which pruning never changes


@dataclass(frozen=True)
class FeedForwardPaths:
    """Paths inside one block: the projections that widen (two when gated) and the one that narrows again."""

    up: tuple[str, ...]
    down: str


@dataclass(frozen=True)
class Family:
    """Everything structural this package knows about a model type; paths are relative to the base model."""

    model_type: str
    blocks: str
    attention: AttentionPaths
    feed_forward: tuple[FeedForwardPaths, ...]  # alternatives: the first whose paths exist in the block is meant
    embeddings: tuple[str, ...] = ()
    ffn_key: str | None = "intermediate_size"  # config key that sets the width of every block; None: not one number
    heads_key: str | None = None  # config keys that together allow fewer heads of the same size; None: it cannot
    head_size_key: str | None = None


@dataclass(frozen=True)
class Block:
    """One transformer block of a concrete model, with the projections as modules' full paths."""

    path: str
    query: str
    key: str
    value: str
    output: str
    up: tuple[str, ...]
    down: str
    head_size: int


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Teach the package a model type; raises ValueError when it is already known."""
    if family.model_type in _FAMILIES:
        raise ValueError(f"model type {family.model_type!r} is already registered")
    _FAMILIES[family.model_type] = family
    return family


def families() -> list[str]:
    """Return the known model types."""
    return sorted(_FAMILIES)


def family_of(model: nn.Module) -> Family:
    """Return the family of a transformers model; FamilyError says how to add one."""
    model_type = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if model_type not in _FAMILIES:
        raise FamilyError(
            f"model type {model_type!r} is not known.{nearest(model_type, _FAMILIES)} To add it, describe where its "
            f"blocks, projections and embeddings live: hfcompress.register_family(Family(model_type={model_type!r}, "
            "blocks=…, attention=…, feed_forward=…, embeddings=…)); see hfcompress/core/families.py for examples."
        )
    return _FAMILIES[model_type]


def base_prefix(model: nn.Module) -> str:
    """Return the path of the base model inside `model`, with a trailing dot, or "" if `model` is the base model."""
    name = str(getattr(model, "base_model_prefix", ""))
    return f"{name}." if name and hasattr(model, name) else ""


def blocks_of(model: nn.Module, family: Family) -> list[Block]:
    """Return the model's transformer blocks in order, with full paths."""
    root = f"{base_prefix(model)}{family.blocks}"
    blocks = []
    for index in range(len(list(model.get_submodule(root).children()))):
        path = f"{root}.{index}"
        ffn = _feed_forward(model, path, family)
        att = family.attention
        blocks.append(
            Block(
                path=path,
                query=f"{path}.{att.query}",
                key=f"{path}.{att.key}",
                value=f"{path}.{att.value}",
                output=f"{path}.{att.output}",
                up=tuple(f"{path}.{u}" for u in ffn.up),
                down=f"{path}.{ffn.down}",
                head_size=int(getattr(model.get_submodule(f"{path}.{att.module}"), att.head_size)),
            )
        )
    return blocks


def embeddings_of(model: nn.Module, family: Family) -> list[str]:
    """Return the full paths of the model's embedding tables."""
    prefix = base_prefix(model)
    return [prefix + path for path in family.embeddings]


def output_layers(model: nn.Module) -> set[str]:
    """Return the paths of the task head's layers that give one number per label; methods leave them in float."""
    prefix, labels = base_prefix(model), getattr(model.config, "num_labels", None)
    return {
        path
        for path, module in model.named_modules()
        if prefix and not path.startswith(prefix) and getattr(module, "out_features", 0) == labels
    }


def _feed_forward(model: nn.Module, block: str, family: Family) -> FeedForwardPaths:
    paths = {name for name, _ in model.get_submodule(block).named_modules()}
    for ffn in family.feed_forward:
        if {*ffn.up, ffn.down} <= paths:
            return ffn
    raise FamilyError(f"{block}: none of the feed-forward layouts known for {family.model_type!r} is here")


_BERT_EMBEDDINGS = tuple(f"embeddings.{n}_embeddings" for n in ("word", "position", "token_type"))
_BERT_ATTENTION = AttentionPaths(
    "attention.self", "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"
)
_BERT_FFN = (FeedForwardPaths(("intermediate.dense",), "output.dense"),)
_VIT_ATTENTION = AttentionPaths(
    "attention", "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", head_size="head_dim"
)
_VIT_FFN = (FeedForwardPaths(("mlp.fc1",), "mlp.fc2"),)

for _type in ("bert", "roberta"):
    register_family(Family(_type, "encoder.layer", _BERT_ATTENTION, _BERT_FFN, _BERT_EMBEDDINGS))
for _type in ("vit", "deit"):
    register_family(
        Family(_type, "layers", _VIT_ATTENTION, _VIT_FFN, heads_key="num_attention_heads", head_size_key="head_dim")
    )
register_family(
    Family(
        "distilbert",
        "transformer.layer",
        AttentionPaths("attention", "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        (FeedForwardPaths(("ffn.lin1",), "ffn.lin2"),),
        _BERT_EMBEDDINGS[:2],
        ffn_key="hidden_dim",
    )
)
register_family(
    Family(
        "dinov2",
        "encoder.layer",
        _VIT_ATTENTION,
        (*_VIT_FFN, FeedForwardPaths(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")),
        ffn_key=None,  # it is `hidden_size * mlp_ratio`, an integer ratio
        heads_key="num_attention_heads",
        head_size_key="head_dim",
    )
)
