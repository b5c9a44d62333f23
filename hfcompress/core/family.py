"""The words in which a model type is described: where its parts live and which config keys count them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AttentionPaths:
    """Paths inside one block: the module that knows the head size, and the four projections.

    Query, key and value are one path where one layer computes all three, in this order. Fewer key and value heads than
    query heads (grouped queries) are read off the shapes.
    """

    module: str
    query: str
    key: str
    value: str
    output: str
    head_size: str = "attention_head_size"  # attribute of `module`: width of one head, which pruning never changes
    more: tuple[str, ...] = ()  # further projections with rows per head, where the block has them
    tables: tuple[str, ...] = ()  # parameters of the block with a last dimension of one entry per head, if there
    shared_tables: tuple[str, ...] = ()  # the same outside the blocks, for all of them; relative to the base model
    counts: tuple[str, ...] = ()  # attributes of `module` that hold the number of heads and are read in its forward
    widths: tuple[str, ...] = ()  # … that hold heads times head size


@dataclass(frozen=True)
class FeedForwardPaths:
    """Paths inside one block: the projections that widen (two when gated) and the one that narrows again."""

    up: tuple[str, ...]
    down: str


@dataclass(frozen=True)
class EmbeddingPaths:
    """Where embeddings live, relative to the base model; "" where the model type has none."""

    word: str = ""
    position: str = ""  # a table, or a parameter (1, positions, width) in models for images
    token_type: str = ""
    position_key: str | None = None  # config key of the number of rows; None: it follows from the image size
    position_offset: int = 0  # rows before that of the first token


@dataclass(frozen=True)
class ChannelKey:
    """A config key that holds a number of channels, or a list of them if "*" stands for one child after the other.

    `paths` are alternatives: the first that exists is that of a layer with as many outputs.
    """

    key: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Depth:
    """How the blocks are counted, and what stands in the way of taking one out."""

    keys: tuple[str, ...] = ("num_hidden_layers",)  # config key for each entry of `Family.blocks`
    lists: tuple[str, ...] = ()  # config keys with a list that has one entry per block
    step: int = 1  # blocks differ by their index modulo this, so as many adjacent ones go together
    first_stays: str = ""  # why the first block can't go; "" where it can
    returns: tuple[int | None, ...] | None = None  # what a block returns after the hidden state: one of its positional
    # arguments, or None; not a tuple at all where this is None
    refused: str = ""  # why no block can go
    refused_if: tuple[tuple[str, str], ...] = ()  # (config key, why no block can go when it is set)


@dataclass(frozen=True)
class ImageTokens:
    """How a block for images is put together: each token becomes x + a(attention(norm(x))), then x + f(ffn(norm(x))).

    `a` and `f` are children of the block, one after the other: modules, or parameters and numbers that multiply.
    """

    leading: int  # tokens before those of the image's patches
    ffn: str  # path of the module that holds the feed-forward layers
    after_attention: tuple[str, ...]
    after_ffn: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Everything structural this package knows about a model type; paths are relative to the base model.

    `blocks` names the lists of blocks; "*" in a path stands for every child in turn, and the config key that counts
    these blocks then holds a list. A convolutional network has neither blocks of this kind nor what is inside them.
    """

    model_type: str
    blocks: str | tuple[str, ...] = ()
    attention: AttentionPaths | None = None
    feed_forward: tuple[FeedForwardPaths, ...] = ()  # alternatives: the first whose paths exist in the block is meant
    embeddings: EmbeddingPaths = field(default_factory=EmbeddingPaths)
    cross: AttentionPaths | None = None  # attention to another stack, in the blocks that have it
    norms: tuple[str, ...] = ()  # paths inside a block
    outer_norms: tuple[str, ...] = ()  # paths outside the blocks, where they exist
    direct: tuple[str, ...] = ()  # tables whose weight the model reads itself, without asking the module
    depth: Depth = field(default_factory=Depth)
    image_tokens: ImageTokens | None = None  # None: no image, or tokens that do not all attend to each other
    hidden_key: str = "hidden_size"
    ffn_key: str | None = "intermediate_size"  # config key that sets the width of every block; None: not one number
    heads_key: str | None = None  # config keys that together allow fewer heads of the same size; None: it cannot
    head_size_key: str | None = None
    key_heads_key: str | None = None  # config key of the number of key and value heads, where it is one of its own
    channel_keys: tuple[ChannelKey, ...] = ()  # of a convolutional network, where its config lists widths
    auto_class: str = "AutoModelForSequenceClassification"
    tiny: Mapping[str, Any] = field(default_factory=dict)  # config values of the smallest model that has every part

    @property
    def block_lists(self) -> tuple[str, ...]:
        """Return `blocks` as a tuple."""
        return (self.blocks,) if isinstance(self.blocks, str) else self.blocks
