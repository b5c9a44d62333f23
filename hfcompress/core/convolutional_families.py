"""The convolutional networks this package knows, as data: no heads, no feed-forward units, channels instead."""

from __future__ import annotations

from typing import Any

from .family import ChannelKey, Depth, Family

_COMMON: dict[str, Any] = {
    "depth": Depth(("depths",), refused="a convolutional network changes resolution and width from stage to stage"),
    "ffn_key": None,
    "auto_class": "AutoModelForImageClassification",
}
_STAGE = "encoder.stages.*"

CONVOLUTIONAL: tuple[Family, ...] = (
    Family(
        "resnet",
        channel_keys=(
            ChannelKey("embedding_size", ("embedder.embedder.convolution",)),
            ChannelKey(
                "hidden_sizes",
                # of a bottleneck, or a basic block
                (f"{_STAGE}.layers.0.layer.2.convolution", f"{_STAGE}.layers.0.layer.1.convolution"),
            ),
        ),
        tiny={"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "basic"},
        **_COMMON,
    ),
    Family(
        "convnext",
        channel_keys=(ChannelKey("hidden_sizes", (f"{_STAGE}.layers.0.dwconv",)),),
        tiny={"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 2], "patch_size": 2, "image_size": 32},
        **_COMMON,
    ),
    Family(  # one factor in its config scales all of its widths, so cut ones have no place there
        "mobilenet_v2",
        tiny={"depth_multiplier": 0.25, "expand_ratio": 2.0, "finegrained_output": False, "image_size": 32},
        **_COMMON,
    ),
)
