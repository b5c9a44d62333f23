"""What a result claims of files, parameters, parts and operations, counted again."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from ..checkpoint import load_model
from ..core.errors import HFCompressError
from ..export.inputs import example_inputs
from ..export.runtime import Source
from ..measure.flops import count_flops
from ..measure.layout import layout_of
from ..measure.result import ModelResult
from ..measure.size import checksum, count_parameters, export_files, local_folder, weight_files
from ..publish.snippet import takes_images
from .claims import COMPRESSED, NOT_FOUND, ORIGINAL, Check, Place, first_line, of, same, unread

LOADS = "loads"


def file_claims(at: Place) -> list[Check]:
    """Count again what lies in the files of both models; a compressed model that does not load ends with that line."""
    sources = at.sources()
    found = _model(at, COMPRESSED, sources[COMPRESSED])
    if found[-1].name == LOADS:
        return found
    if ORIGINAL not in sources:
        return [*found, *unread(_said(at.result.baseline), NOT_FOUND)]
    return [*found, *_model(at, ORIGINAL, sources[ORIGINAL])]


def _said(wanted: ModelResult) -> Iterator[tuple[str, str]]:
    """Yield the claims of the original that are open where it is not at hand."""
    for name, size in {**wanted.files, **wanted.exports}.items():
        yield f"{of(ORIGINAL)}bytes of {name}", f"{size:,}"
    yield f"{of(ORIGINAL)}parameters", f"{wanted.parameters:,}"
    for key, work in wanted.flops.items():
        yield f"{of(ORIGINAL)}FLOPs at {key}", f"{work:,}"


def _model(at: Place, label: str, source: Source) -> list[Check]:
    wanted = at.models[label]
    try:
        folder = local_folder(source.checkpoint, source.revision)
    except HFCompressError as error:
        return unread(_said(wanted), first_line(error))
    exports = Path(source.exports or source.checkpoint)
    counts = list(_counts(at, label, source))  # first: loading may fetch the files
    return [*_files(at, label, folder), *_exports(label, wanted, exports), *counts]


def _files(at: Place, label: str, folder: Path) -> Iterator[Check]:
    """Compare the weight files with those that load: no other file counts, and none may be left out."""
    wanted = at.models[label]
    try:
        yield _named(f"{of(label)}weight files", wanted.files, weight_files(folder))
    except (HFCompressError, OSError, ValueError, KeyError) as error:  # an index may be damaged, or a file of it gone
        yield Check(f"{of(label)}weight files", _number(wanted.files), first_line(error), False)
    if at.complete:
        yield _named(f"{of(label)}files with a SHA-256", wanted.checksums, wanted.files)
    for name, size in wanted.files.items():
        yield _bytes(label, folder, name, size)
    total = sum(wanted.files.values())
    yield Check(f"{of(label)}bytes of all weights", f"{wanted.size_bytes:,}", f"{total:,} by file",
                total == wanted.size_bytes)  # fmt: skip
    for name, told in wanted.checksums.items():
        file = folder / name
        found = checksum(file) if file.is_file() else "missing"
        yield Check(f"{of(label)}SHA-256 of {name}", told[:12], found[:12], found == told)


def _exports(label: str, wanted: ModelResult, folder: Path) -> Iterator[Check]:
    """Compare exported files; those of the original are only for comparison and may be gone."""
    if there := export_files(folder):
        yield _named(f"{of(label)}exported files", wanted.exports.keys() & there.keys(), there)
    for name, size in wanted.exports.items():
        if label == ORIGINAL and not (folder / name).is_file():
            yield Check(f"{of(label)}bytes of {name}", f"{size:,}", f"{name} of this model is not at hand", None)
        else:
            yield _bytes(label, folder, name, size)


def _named(name: str, told: Collection[str], there: Collection[str]) -> Check:
    """Return the check that a result names all the files there are, and no other."""
    wrong = [f"not named: {file}" for file in sorted(set(there) - set(told))]
    wrong += [f"not one: {file}" for file in sorted(set(told) - set(there))]
    return Check(name, _number(told), wrong[0] if wrong else _number(there), not wrong)


def _number(names: Collection[str]) -> str:
    return f"{len(names)} file{'s' * (len(names) != 1)}"


def _bytes(label: str, folder: Path, name: str, size: int) -> Check:
    file = folder / name
    return same(f"{of(label)}bytes of {name}", size, file.stat().st_size if file.is_file() else "missing")


def _counts(at: Place, label: str, source: Source) -> Iterator[Check]:
    result, wanted = at.result, at.models[label]
    try:
        model = load_model(source.checkpoint, result.auto_class, revision=source.revision, dtype=result.dtype)
    except HFCompressError as error:
        yield Check(of(label) + LOADS, "yes", first_line(error), False)
        return
    parameters, nonzeros = count_parameters(model)
    yield same(f"{of(label)}parameters", wanted.parameters, parameters)
    yield same(f"{of(label)}parameters that are not zero", wanted.nonzeros, nonzeros)
    if wanted.layout:
        words = f"{len(wanted.layout)} parts"
        held = layout_of(model) == wanted.layout
        yield Check(f"{of(label)}heads, units, bits and bytes of each part", words, words if held else "others", held)
    for key, work in wanted.flops.items():
        size = key.partition("x")[2]
        length, pixels = (None, source.image_size) if takes_images(result) else (int(size), None)
        pixels = int(size) if takes_images(result) and size.isdigit() else pixels
        yield same(f"{of(label)}FLOPs at {key}", work, count_flops(model, example_inputs(model, 1, length, pixels)))
