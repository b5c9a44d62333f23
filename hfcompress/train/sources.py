"""Where splits come from: the Hub, local files, what `save_to_disk` wrote, an image folder, or scikit-learn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from PIL import Image as PILImage

from ..core.errors import DataError, nearest
from ..core.pretrained import NO_REMOTE_CODE
from ..recipe.data import Data, Origin
from .saved import is_saved, open_saved
from .tables import TEXT, Reading, is_table, kinds, read_tables
from .text_files import kind_and_stem

LABELS_FILE = "labels.json"
_SPLITS = (
    "train",
    "training",
    "validation",
    "valid",
    "val",
    "dev",
    "test",
    "testing",
    "eval",
    "evaluate",
    "evaluation",
)
_OFTEN_NO_DATA = (".json", TEXT)  # kinds that settings and notes beside a data set have
_SHOWN = 8
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Source:
    """Every split of a data set as it lies there."""

    name: str  # for messages and the card: a Hub id or the last part of a path
    splits: dict[str, Dataset]
    label_names: list[str] | None = None  # from labels.json


def open_source(data: Origin, where: str = "data") -> Source:
    """Open what `dataset` or `path` names; DataError names the key under `where` when it cannot be read."""
    if data.path is not None:
        try:
            reading = Reading(where, data.delimiter, data.encoding)
            return _open_path(Path(data.path).expanduser(), reading, _asked(data))
        except OSError as error:
            raise DataError(f"{where}.path: {data.path} cannot be read: {error.strerror or error}.") from error
    name = str(data.dataset)
    return _open_sklearn(name, where) if name.startswith("sklearn:") else _open_hub(name, data, where)


def _asked(data: Origin) -> set[str]:
    """Return the names of the splits that the recipe speaks of."""
    specs = [data.splits.train, data.splits.evaluate] if isinstance(data, Data) else [getattr(data, "split", None)]
    return {part.partition("[")[0].strip() for spec in specs if spec for part in spec.split("+")}


def _open_hub(name: str, data: Origin, where: str) -> Source:
    try:
        found = load_dataset(name, data.config, revision=data.revision, **NO_REMOTE_CODE)
    except (OSError, ValueError, RuntimeError) as error:  # what `datasets` and the Hub client raise, offline included
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{where}.dataset: cannot load {name!r}: {reason} To use local files, set '{where}.path' instead."
        ) from error
    return Source(name, dict(found))


def _open_sklearn(name: str, where: str) -> Source:
    """Open images that scikit-learn ships; their values are scaled to 0..255."""
    import sklearn.datasets

    short = name.removeprefix("sklearn:")
    loader: Callable[[], Any] | None = getattr(sklearn.datasets, f"load_{short}", None)
    bunch = loader() if loader is not None and short not in ("files", "svmlight_file", "svmlight_files") else None
    if bunch is None or "images" not in bunch or "target" not in bunch:
        raise DataError(
            f"{where}.dataset: scikit-learn ships no labelled images called {short!r}.{nearest(short, ['digits'])}"
        )
    pixels = np.asarray(bunch["images"], dtype=np.float64)
    pixels = np.rint(pixels * (255 / pixels.max())).astype(np.uint8)
    names = [str(n) for n in bunch.get("target_names", np.unique(bunch["target"]))]
    features = Features(image=Image(), label=ClassLabel(names=names))
    rows = {"image": [PILImage.fromarray(p) for p in pixels], "label": bunch["target"].tolist()}
    return Source(name, {"train": Dataset.from_dict(rows, features=features)})


def _open_path(path: Path, reading: Reading, asked: set[str]) -> Source:
    """Open a file, tables that are called by splits, in a folder or one below it, or else folders of images."""
    where = reading.where
    if path.is_file():
        return Source(path.name or str(path), {"train": read_tables([path], reading)}, _label_names(path.parent))
    if not path.is_dir():
        raise DataError(f"{where}.path: there is no file or folder {path}.")
    if is_saved(path):
        return Source(path.name or str(path), open_saved(path, where), _label_names(path))
    if saved := [place for place in _folders(path) if is_saved(place)]:  # each split by itself
        splits = {place.name: split for place in saved for split in open_saved(place, where).values()}
        return Source(path.name or str(path), splits, _label_names(path))
    named = {*_SPLITS, *asked}
    tables = {key: files for key, files in _tables([path, path / "data"]).items() if key[1] != TEXT or key[0] in named}
    if not any(split in named and kind != TEXT for split, kind in tables):  # images have such lists beside them
        if inside := _folder_of_tables(path, named, where):
            path, tables = inside, _tables([inside])
        elif any(_holds_images(place) or _holds_classes(place) for place in _folders(path)):
            return _open_imagefolder(path, where)
    if not tables:
        wanted = ", ".join(f"<split>{suffix}" for suffix in kinds())
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:_SHOWN]) or "nothing"
        raise DataError(
            f"{where}.path: {path} holds neither {wanted} nor folders of images, nor was it made by save_to_disk, but "
            f"{found}."
        )
    splits = {split: read_tables(files, reading) for split, files in _chosen(tables, named).items()}
    return Source(path.name or str(path), splits, _label_names(path))


def _folder_of_tables(path: Path, named: set[str], where: str) -> Path | None:
    """Return the one folder in `path` whose tables are called by splits; DataError when there are several."""
    found = [
        place
        for place in _folders(path)
        if any(split in named and kind not in _OFTEN_NO_DATA for split, kind in _tables([place]))
    ]
    if len(found) > 1:
        names = ", ".join(place.name for place in found)
        raise DataError(f"{where}.path: {path} holds several data sets ({names}): name one of these folders.")
    return found[0] if found else None


def _tables(places: Iterable[Path]) -> dict[tuple[str, str], list[Path]]:
    """Return the tables in some folders by what they are called, without the number of a shard, and their kind."""
    found: dict[tuple[str, str], list[Path]] = {}
    for file in sorted(file for place in places for file in place.glob("*")):
        if is_table(file) and file.name != LABELS_FILE:
            kind, stem = kind_and_stem(file)
            found.setdefault((_SHARD.sub("", stem), kind), []).append(file)
    return found


def _chosen(tables: Mapping[tuple[str, str], list[Path]], named: set[str]) -> dict[str, list[Path]]:
    """Return the tables of each split, of two kinds the first of `kinds()`.

    Where some are called by splits, the settings of a model or a data set that lie beside them are none.
    """
    used = [suffix for suffix in kinds() if any(s == suffix and split in named for split, s in tables)]
    found: dict[str, list[Path]] = {}
    for suffix in kinds():
        if suffix == TEXT and used not in ([], [TEXT]):
            continue
        for split, files in ((split, files) for (split, s), files in tables.items() if s == suffix):
            if not used or split in named or (suffix in used and suffix not in _OFTEN_NO_DATA):
                found.setdefault(split, files)
    return found


def _folders(path: Path) -> list[Path]:
    return sorted(place for place in path.iterdir() if place.is_dir() and not place.name.startswith("."))


def _holds_images(path: Path) -> bool:
    PILImage.init()
    return any(file.suffix.lower() in PILImage.EXTENSION for file in path.iterdir())


def _holds_classes(path: Path) -> bool:
    return any(_holds_images(place) for place in _folders(path))


def _image_root(path: Path) -> Path:
    """Return the folder whose folders are splits or labels: the only one below that is, where `path` is not."""
    places = _folders(path)
    inside = [place for place in places if _holds_classes(place)]
    bare = len(inside) == 1 and inside[0].name not in _SPLITS and not any(map(_holds_images, places))
    return inside[0] if bare else path


def _open_imagefolder(path: Path, where: str) -> Source:
    try:
        found = load_dataset("imagefolder", data_dir=str(_image_root(path)), **NO_REMOTE_CODE)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}.path: {path} cannot be read as a folder of images: {error}") from error
    return Source(path.name or str(path), dict(found))


def _label_names(folder: Path) -> list[str] | None:
    """Read the names of integer labels from labels.json: a list, or a mapping from number to name."""
    path = folder / LABELS_FILE
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(names, dict):
            names = [names[str(index)] for index in range(len(names))]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is not a list of label names, nor a mapping from 0, 1, … to names: {error}") from error
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise DataError(f"{path} is not a list of label names.")
    return names
