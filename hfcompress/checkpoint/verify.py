"""Whether a checkpoint still holds what was saved: its structure and each part's weights against their digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from ..core.errors import CheckpointError
from .announcing import require_announced
from .as_stored import as_stored
from .digests import weight_digests
from .load import load_model
from .save import is_stock
from .stated import short


def digests_of(folder: str | Path) -> dict[str, str] | None:
    """Return the SHA-256 of each part that the checkpoint in `folder` states; None where it states none."""
    require_announced(folder)
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        if is_stock(folder):
            return None
        found = config["quantization_config"].get("weights_sha256")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"cannot read {folder}/config.json: {error}") from error
    if found is not None and not isinstance(found, dict):
        raise CheckpointError(f"{folder}: weights_sha256 is {short(found)}, and no mapping: config.json is damaged")
    return found


def damaged_parts(folder: str | Path) -> list[str]:
    """Return the parts whose weights are not those that were saved, by the digests in the config.

    Raises CheckpointError as `load_model` does, and where the config states no digest.
    """
    stated = digests_of(folder)
    if stated is None:
        raise CheckpointError(f"{folder} states no digest of its weights: it was saved by an earlier release")
    with as_stored():
        found = weight_digests(load_model(folder, _own_class(folder), dtype="auto")) or {}
    return sorted(part for part in stated.keys() | found.keys() if stated.get(part) != found.get(part))


def _own_class(folder: str | Path) -> type[Any]:
    """Return the class that the checkpoint was saved from."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    for name in config.get("architectures") or ():
        if isinstance(found := getattr(transformers, str(name), None), type):
            return found
    return transformers.AutoModel
