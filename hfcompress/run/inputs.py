"""What the local files that a recipe names hold, so that no run goes on with work done on others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from ..checkpoint.adapters import find_adapter
from ..measure.size import checksum
from ..recipe.schema import Recipe

_OF_MODELS = (".safetensors", ".json", ".txt", ".model")
_MANY = 1000  # files: of more, such as images, only names and sizes are compared


def inputs_of(recipe: Recipe) -> dict[str, str]:
    """Return, by the recipe's key, the SHA-256 of what is in the local files and folders it names."""
    return {key: _digest(place) for key, name in _named(recipe) if (place := Path(name).expanduser()).exists()}


def _named(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for key, name in recipe.places().items():
        yield key, name
        if recipe.merge_adapters and Path(name).is_dir() and (adapter := find_adapter(name)):
            yield f"{key} (base of the adapter)", adapter.base


def _digest(place: Path) -> str:
    files = [place] if place.is_file() else sorted(_files(place))
    lines = [f"{file.relative_to(place)} {_content(file, whole=len(files) <= _MANY)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _files(folder: Path) -> Iterable[Path]:
    if (folder / "config.json").is_file():  # a model's: its exports and its card may be written anew
        return (file for file in folder.iterdir() if file.suffix in _OF_MODELS and file.is_file())
    return (file for file in folder.rglob("*") if file.is_file())


def _content(file: Path, *, whole: bool) -> str:
    stat = file.stat()
    return _checksum(file, stat.st_size, stat.st_mtime_ns) if whole else str(stat.st_size)


@lru_cache(maxsize=_MANY)
def _checksum(file: Path, size: int, changed: int) -> str:
    """Return the file's SHA-256, read once as long as size and time stay: every cell of a suite asks for it."""
    return checksum(file)
