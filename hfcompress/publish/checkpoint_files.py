"""Which files of a checkpoint folder are ours to upload: what this package writes, and nothing else."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import transformers
from transformers import PreTrainedTokenizerBase

from ..core.errors import PublishError
from ..export.files import beside
from ..export.runtime import ENGINES
from .code import is_code
from .examples import GRID
from .figures import FIGURE
from .layers_figure import LAYERS
from .pareto import PARETO

WEIGHTS = (".safetensors", ".safetensors.index.json", ".onnx", ".onnx.data", ".onnx_data")
_LEFTOVER = re.compile(
    r"(checkpoint-[0-9]+|runs|__pycache__|optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state.*\.pth"
    r"|training_args\.bin|trainer_state\.json|events\.out\.tfevents.*)"
)
_PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
_WEIGHT_FILE = re.compile(r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_CHAT_TEMPLATE = re.compile(r"additional_chat_templates/[\w-]+\.jinja")
_NAMES = {
    *("README.md", "result.json", GRID, FIGURE, LAYERS, PARETO),
    *("config.json", "generation_config.json", "quantize_config.json", "adapter_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
}


def files_to_upload(folder: Path) -> dict[str, Path]:
    """Return a checkpoint folder's files by their path in the repository, dotfiles and training leftovers left out.

    Raises PublishError when the folder holds no safetensors, or, by name, a link, a pickle or a file that this package
    does not write.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    paths = {name: path for name, path in paths.items() if not any(map(_stays_here, name.split("/")))}
    if links := [name for name, path in paths.items() if path.is_symlink()]:
        raise PublishError(
            f"{_some(links)} in {folder.name}/ leads elsewhere (a symbolic link): put a copy of the file in its place, "
            "or remove the link"
        )
    files = {name: path for name, path in paths.items() if path.is_file()}
    for name, path in files.items():
        if _is_pickle(path):
            raise PublishError(
                f"{name} is a pickle, which can run code where it is loaded: save weights as safetensors"
            )
    if not any(name.endswith(".safetensors") and "/" not in name for name in files):
        inner = f" Did you mean {folder / 'model'}?" if (folder / "model" / "config.json").is_file() else ""
        raise PublishError(f"{folder} holds no safetensors file, so it is not a checkpoint.{inner}")
    ours = {*_NAMES, *_exports(), *_vocabulary_files(folder)}
    if strays := [name for name in files if not (name in ours or _is_ours(name))]:
        raise PublishError(
            f"{_some(strays)} in {folder.name}/ is no file that hfcompress writes, so it is not uploaded unseen: move "
            "it elsewhere, push, and add it to the repository yourself (`hf upload`) if it belongs there"
        )
    return files


def _is_ours(name: str) -> bool:
    return bool(_WEIGHT_FILE.fullmatch(name) or _CHAT_TEMPLATE.fullmatch(name)) or is_code(name)


def _some(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _exports() -> Iterator[str]:
    """Yield the names of the files that engines read, and of those that hold their weights."""
    for file in filter(None, (engine.file for engine in ENGINES.values())):
        yield from (file, beside(Path(file)).as_posix())


def _vocabulary_files(folder: Path) -> Iterator[str]:
    """Yield the names of the files that the folder's tokenizer class keeps its vocabulary in."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        name = str(config.get("tokenizer_class"))
    except (OSError, ValueError, AttributeError):
        return
    yield from ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model")  # of a tokenizer of no known class
    for kind in (getattr(transformers, n, None) for n in (name, f"{name}Fast", name.removesuffix("Fast"))):
        if isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase):
            yield from kind.vocab_files_names.values()


def _stays_here(part: str) -> bool:
    return part.startswith(".") or _LEFTOVER.fullmatch(part) is not None


def _is_pickle(path: Path) -> bool:
    """Return whether `path` is named or built like a pickle."""
    # Raw numbers may begin like anything; the .bin beside an OpenVINO .xml is raw numbers too.
    if path.name.endswith(WEIGHTS) or (path.suffix == ".bin" and path.with_suffix(".xml").is_file()):
        return False
    if path.suffix in _PICKLES:
        return True
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    with path.open("rb") as file:
        start = file.read(2)
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5  # PROTO, and the protocols in use
