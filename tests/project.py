"""A small project on disk: a trained-looking tiny BERT with its tokenizer, csv data, and a recipe for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tiny import LABELS, make
from transformers import BertTokenizerFast

from hfcompress.checkpoint import save_checkpoint

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "fair", "a", "film", "very", "not"]
NAMES = ["negative", "neutral", "positive"]


def text_project(folder: Path, **recipe: Any) -> Path:
    """Write model, data and recipe under `folder` and return the recipe's path; `recipe` replaces top-level keys."""
    model = make("bert")
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: i for i, name in enumerate(NAMES)}
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    save_checkpoint(model, folder / "base", BertTokenizerFast(str(vocabulary)))
    for split, size in (("train", 48), ("validation", 24)):
        rows = [f"a {['bad', 'fair', 'good'][i % LABELS]} film,{NAMES[i % LABELS]}" for i in range(size)]
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    values = {
        "model": str(folder / "base"),
        "task": "text-classification",
        "data": {"path": str(folder / "data")},
        "stages": [
            {
                "name": "prune",
                "methods": {"movement": {"heads": 0.5, "ffn": 0.5, "round_to": 4}, "distill": {}},
                "train": {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 0.001},
            },
            {"methods": {"quantize_weights": {}}},
        ],
        "benchmark": None,
        **recipe,
    }
    values["evaluate"] = {"allow_trivial": True, **recipe.get("evaluate", {})}  # the model knows nothing
    values["data"] = {"allow_leakage": True, **values["data"]}  # few examples, many times
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path
