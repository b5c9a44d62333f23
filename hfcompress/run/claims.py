"""What a result claims, line by line, and where the two models it speaks of lie now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import ExportError, HFCompressError
from ..core.local_paths import without_local_paths
from ..export.runtime import Source, engine, require_engine
from ..measure.result import ModelResult, Result, read_result
from .claimed import claimed_recipe
from .folder import RunFolder

NOT_FOUND = "the original was not found: name it with --baseline"
ORIGINAL, COMPRESSED = "original", "compressed"


@dataclass(frozen=True)
class Check:
    """One claim: what the result says, what was found, and whether that agrees; None: it could not be looked at."""

    name: str
    claimed: str
    found: str
    holds: bool | None
    why: str = ""  # it could not be looked at, where `found` says more


@dataclass(frozen=True)
class Place:
    """A result and where its models are: the folder of the run, the compressed model's, and the original if found."""

    result: Result
    folder: RunFolder
    model: Path
    original: str | None

    @property
    def threads(self) -> int:
        """Threads the result was measured with."""
        return int(self.result.environment.get("threads", 1))

    @property
    def models(self) -> dict[str, ModelResult]:
        """What the result says of both."""
        return {COMPRESSED: self.result.compressed, ORIGINAL: self.result.baseline}

    @property
    def complete(self) -> bool:
        """Whether whoever made the result computed all that is told today: older ones have neither of these."""
        rows = [*self.result.baseline.quality, *self.result.compressed.quality]
        told = (row.mcnemar or row.classes or row.divergence is not None for row in self.result.difference)
        sure = (row.calibration_error is not None for row in rows)
        return any(model.checksums for model in self.models.values()) or any(told) or any(sure)

    def sources(self, engines: Sequence[str] = ()) -> dict[str, Source]:
        """Return the models that are at hand, the original first; of `engines` those without a file are skipped."""
        result, found = self.result, {}
        if self.original is not None:
            revision = None if Path(self.original).is_dir() else result.base_model.revision
            exports, size = str(self.folder.baseline_exports), result.baseline.image_size
            found[ORIGINAL] = Source(self.original, exports, revision, result.dtype, image_size=size)
        size = result.compressed.image_size
        found[COMPRESSED] = Source(str(self.model), dtype=result.dtype, image_size=size)
        return {label: _runnable(source, engines) for label, source in found.items()}


def find_place(folder: Path, baseline: str | None, overrides: Sequence[str]) -> Place:
    """Return where the models of the result in `folder` are; MeasureError when there is no result."""
    place = RunFolder(folder)
    result = _with_whole_paths(read_result(folder), place)
    model = place.model if (place.model / "config.json").is_file() else folder
    return Place(result, place, model, baseline or _original(result, place, overrides))


def _with_whole_paths(result: Result, place: RunFolder) -> Result:
    """Return the result with the recipe as it lies beside it, which says where local files are, if it is the same."""
    recipe = place.path / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    same = without_local_paths(text) == without_local_paths(result.recipe)
    return result.model_copy(update={"recipe": text, "recipe_cut": False}) if text and same else result


def same(name: str, claimed: object, found: object) -> Check:
    """Return the check of a claim that holds only if the very same is found."""
    said, seen = (f"{value:,}" if isinstance(value, int) else str(value) for value in (claimed, found))
    return Check(name, said, seen, claimed == found)


def unread(names: Iterator[tuple[str, str]] | Sequence[tuple[str, str]], why: str) -> list[Check]:
    """Return claims, each a name and what is claimed, that could not be looked at."""
    return [Check(name, claimed, why, None) for name, claimed in names]


def of(label: str) -> str:
    """Return what stands before a claim's name: of the compressed model nothing."""
    return "" if label == COMPRESSED else f"{label}: "


def first_line(error: Exception) -> str:
    """Return an error in a line of the table."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def missing(name: str, source: Source) -> str:
    """Say why an engine cannot be opened on what is at hand; nothing where it can."""
    file = engine(name).file
    try:
        require_engine(name)
    except ExportError as error:
        return first_line(error)
    held = file is None or (Path(source.exports or source.checkpoint) / file).is_file()
    return "" if held else f"{file} of this model is not at hand"


def _runnable(source: Source, engines: Sequence[str]) -> Source:
    return replace(source, skips={name: why for name in engines if (why := missing(name, source))})


def _original(result: Result, place: RunFolder, overrides: Sequence[str]) -> str | None:
    """Return the original: fine-tuned in the run's folder, where plan or recipe found it, or by its Hub id."""
    if (place.baseline / "config.json").is_file():
        return str(place.baseline)
    if (found := _planned(place) or _named(result, overrides)) is not None:
        return found
    return result.base_model.id if result.base_model.hub and result.base_model.base is None else None


def _planned(place: RunFolder) -> str | None:
    try:
        planned = str(json.loads((place.path / "plan.json").read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError):
        return None
    return planned if planned and (Path(planned) / "config.json").is_file() else None


def _named(result: Result, overrides: Sequence[str]) -> str | None:
    """Return the folder that the result's recipe names; one that was fine-tuned first is not what lies there."""
    try:
        recipe = claimed_recipe(result, overrides, ("model=",))
    except HFCompressError:
        return None
    local = isinstance(recipe.model, str) and (Path(recipe.model) / "config.json").is_file()
    return str(recipe.model) if local and recipe.finetune is None else None
