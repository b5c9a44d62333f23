"""The loader as plain source files beside a model, for those who have transformers and not this package.

With `trust_remote_code` transformers runs files of a repository, but follows imports only to files in the same folder.
So every file of this package that the loader needs is written out under a flat name, with its imports renamed and
nothing else about it changed.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from .. import __version__
from ..checkpoint.save import CODE
from ..core.errors import PublishError
from .template import render

_PACKAGE = Path(__file__).parents[1]
_LOADER = _PACKAGE / "checkpoint" / "loader.py"
_HEADER = "# {name} of hfcompress {version}, licensed under Apache-2.0; only its imports were renamed.\n"
_RELATIVE = re.compile(r"from\s+\.[\w.]*\s+import")
_COME_ALONG = {"transformers", "safetensors"}  # transformers cannot be installed without the other
_NAME = re.compile(rf"({CODE}|hfcompress_\w+)\.py")


@dataclass(frozen=True)
class Code:
    """What goes up beside a model that carries its loader: files by name, the config that names them among them."""

    files: dict[str, bytes]
    libraries: tuple[str, ...]  # what they import beside transformers and Python itself


def code_for(model: Path, auto_class: str) -> Code:
    """Return the code for the checkpoint in the folder `model`, which the transformers class `auto_class` loads.

    Raises PublishError when a file of the loader imports what a flat file cannot.
    """
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    classes = _classes(config, auto_class)
    loader = loader_files()
    entry = render(
        f"{CODE}.py.jinja", version=__version__, loader=_flat(_LOADER), classes=sorted(set(classes.values()))
    )
    config["auto_map"] = {auto: f"{CODE}.{name}" for auto, name in classes.items()}
    texts = loader | {f"{CODE}.py": entry, "config.json": json.dumps(config, indent=2, sort_keys=True) + "\n"}
    return Code({name: text.encode() for name, text in sorted(texts.items())}, libraries(loader.values()))


def is_code(name: str) -> bool:
    """Say whether a file of a repository is one of those this module writes."""
    return _NAME.fullmatch(name) is not None


def loader_files() -> dict[str, str]:
    """Return the text of every file the loader needs, itself among them, by flat name; PublishError as `code_for`."""
    found: dict[Path, str] = {}
    left = [_LOADER]
    while left:
        path = left.pop()
        if path not in found:
            found[path], needed = _flattened(path)
            left += needed
    return {f"{_flat(path)}.py": text for path, text in sorted(found.items())}


def libraries(texts: Iterable[str]) -> tuple[str, ...]:
    """Return what these files import when they are imported, beside transformers and what comes with it or Python."""
    names = set()
    for text in texts:
        for node in ast.parse(text).body:
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).partition(".")[0])
    return tuple(sorted(names - sys.stdlib_module_names - _COME_ALONG))


def libraries_beside(folder: Path) -> tuple[str, ...] | None:
    """Return what the loader's code in `folder` needs, as `Code.libraries` says; None where it holds none."""
    files = [file for file in folder.glob("*.py") if is_code(file.name)]
    return libraries(f.read_text(encoding="utf-8") for f in files if f.stem != CODE) if files else None


def _classes(config: dict[str, object], auto_class: str) -> dict[str, str]:
    """Return the model's class by the auto class that loads it, and that of its base model by AutoModel."""
    architectures: object = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise PublishError("config.json names no architecture, so its code cannot say which class the model is")
    base = MODEL_MAPPING_NAMES.get(str(config.get("model_type")))
    bases = {"AutoModel": base} if isinstance(base, str) else {}  # a few model types have several
    return {**bases, auto_class: architectures[0]}


def _flattened(path: Path) -> tuple[str, list[Path]]:
    """Return the text of a file with its imports renamed, and the files it imports from."""
    text = path.read_text(encoding="utf-8")
    lines, needed = text.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            needed.append(_imported(path, node))
            flat = f"from .{_flat(needed[-1])} import"
            lines[node.lineno - 1] = _RELATIVE.sub(flat, lines[node.lineno - 1], count=1)
    header = _HEADER.format(name=path.relative_to(_PACKAGE.parent).as_posix(), version=__version__)
    return header + "".join(lines), needed


def _imported(path: Path, node: ast.ImportFrom) -> Path:
    module = path.parents[node.level - 1].joinpath(*(node.module or "").split(".")).with_suffix(".py")
    if not module.is_file():
        raise PublishError(f"{path}, line {node.lineno}: the loader may import from files of the package, not folders")
    return module


def _flat(path: Path) -> str:
    return "_".join(("hfcompress", *path.relative_to(_PACKAGE).with_suffix("").parts))
