"""Where splits come from: the Hub, local files, an image folder, or scikit-learn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from PIL import Image as PILImage

from ..core.errors import DataError, nearest
from ..core.pretrained import NO_REMOTE_CODE
from ..recipe.data import Data, Origin

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
        return _open_path(Path(data.path).expanduser(), where, _asked(data))
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


def _open_path(path: Path, where: str, asked: set[str]) -> Source:
    """Open a file, tables that are called by splits, in a folder or one below it, or else folders of images."""
    if path.is_file():
        return Source(path.name, {"train": _read([path], where)}, _label_names(path.parent))
    if not path.is_dir():
        raise DataError(f"{where}.path: there is no file or folder {path}.")
    named = {*_SPLITS, *asked}
    tables = _tables([path, path / "data"])
    if not any(split in named for split, _ in tables):
        if inside := _folder_of_tables(path, named, where):
            path, tables = inside, _tables([inside])
        elif any(_holds_images(place) or _holds_classes(place) for place in _folders(path)):
            return _open_imagefolder(path, where)
    if not tables:
        kinds = ", ".join(f"<split>{suffix}" for suffix in _READERS)
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:_SHOWN]) or "nothing"
        raise DataError(f"{where}.path: {path} holds neither {kinds} nor folders of images, but {found}.")
    groups = _chosen(tables, named)
    return Source(path.name, {split: _read(files, where) for split, files in groups.items()}, _label_names(path))


def _folder_of_tables(path: Path, named: set[str], where: str) -> Path | None:
    """Return the one folder in `path` whose tables are called by splits; DataError when there are several."""
    found = [
        place
        for place in _folders(path)
        if any(split in named and kind != ".json" for split, kind in _tables([place]))  # Food-101 lists images in .json
    ]
    if len(found) > 1:
        names = ", ".join(place.name for place in found)
        raise DataError(f"{where}.path: {path} holds several data sets ({names}): name one of these folders.")
    return found[0] if found else None


def _tables(places: Iterable[Path]) -> dict[tuple[str, str], list[Path]]:
    """Return the tables in some folders by what they are called, without the number of a shard, and their kind."""
    found: dict[tuple[str, str], list[Path]] = {}
    for file in sorted(file for place in places for file in place.glob("*")):
        if file.suffix in _READERS and file.name != LABELS_FILE:
            found.setdefault((_SHARD.sub("", file.stem), file.suffix), []).append(file)
    return found


def _chosen(tables: Mapping[tuple[str, str], list[Path]], named: set[str]) -> dict[str, list[Path]]:
    """Return the tables of each split, of two kinds the first of `_READERS`.

    Where some are called by splits, the settings of a model or a data set that lie beside them are none.
    """
    kinds = [suffix for suffix in _READERS if any(s == suffix and split in named for split, s in tables)]
    found: dict[str, list[Path]] = {}
    for suffix in _READERS:
        for split, files in ((split, files) for (split, s), files in tables.items() if s == suffix):
            if not kinds or split in named or (suffix in kinds and suffix != ".json"):
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
    return Source(path.name, dict(found))


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


def _read(files: list[Path], where: str) -> Dataset:
    """Read one split into memory: no copy in a cache, no fingerprint of the files."""
    tables = []
    for file in files:
        try:
            tables.append(_READERS[file.suffix](file))
        except KeyError as error:
            raise DataError(f"{where}.path: {file} is none of {', '.join(_READERS)}.") from error
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{file} cannot be read: {error}") from error
    try:
        return Dataset(pa.concat_tables(tables))
    except pa.ArrowException as error:
        raise DataError(f"{', '.join(f.name for f in files)} do not have the same columns: {error}") from error


def _read_csv(path: Path) -> pa.Table:
    return pa.csv.read_csv(path, parse_options=pa.csv.ParseOptions(newlines_in_values=True))


def _read_json(path: Path) -> pa.Table:
    """Read one JSON object a line, or one array of objects."""
    with path.open("rb") as file:
        if file.read(64).lstrip()[:1] != b"[":
            return pa.json.read_json(path)
    return pa.Table.from_pylist(json.loads(path.read_text(encoding="utf-8")))


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".parquet": pa.parquet.read_table,
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
}
