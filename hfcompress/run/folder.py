"""The run folder: what a run leaves, and what tells a resumed run how far the last one came."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import HFCompressError, RecipeError
from ..core.files import write_text
from ..measure.examples import EXAMPLES
from ..recipe.load import LoadedRecipe
from ..recipe.plan import Plan

_MARK = "hfcompress-run.json"


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder; every file in it is written whole or not at all."""

    path: Path

    @property
    def model(self) -> Path:
        """The compressed checkpoint, its exports and its card."""
        return self.path / "model"

    @property
    def baseline(self) -> Path:
        """The fine-tuned model, when the recipe fine-tunes first."""
        return self.path / "baseline"

    @property
    def student(self) -> Path:
        """The folder of the student as it was before any stage, if the recipe names one."""
        return self.path / "stages" / "student"

    @property
    def control(self) -> Path:
        """The uncompressed model after the same training."""
        return self.path / "control"

    @property
    def baseline_exports(self) -> Path:
        """Exports of the baseline, which are only for comparison."""
        return self.path / "exports" / "baseline"

    @property
    def batches(self) -> Path:
        """The evaluation split as the compressed model reads it, in every engine."""
        return self.path / "evaluation.safetensors"

    @property
    def baseline_batches(self) -> Path:
        """The same as the baseline reads it, when the compressed model has a tokenizer of its own."""
        return self.path / "evaluation-baseline.safetensors"

    @property
    def calibration(self) -> Path:
        """Training examples, as the compressed model reads them, on which exports are calibrated."""
        return self.path / "calibration.safetensors"

    @property
    def baseline_calibration(self) -> Path:
        """The same as the baseline reads them."""
        return self.path / "calibration-baseline.safetensors"

    @property
    def real(self) -> Path:
        """Examples of the evaluation split one at a time, as the compressed model reads them, to be timed on."""
        return self.path / "real.safetensors"

    @property
    def baseline_real(self) -> Path:
        """The same as the baseline reads them, when the compressed model has a processor of its own."""
        return self.path / "real-baseline.safetensors"

    @property
    def measured(self) -> Path:
        """What models put out on the evaluation split and took to open, by engine and by what their files hold."""
        return self.path / "measured"

    @property
    def labels(self) -> Path:
        """The labels of the evaluation split."""
        return self.path / "labels.safetensors"

    @property
    def examples(self) -> Path:
        """What both models say of a few examples that can be shown; their images lie beside it."""
        return self.path / EXAMPLES

    def stage(self, index: int) -> Path:
        """The folder of one stage."""
        return self.path / "stages" / str(index)

    def log(self, **entry: Any) -> None:
        """Append one line to log.jsonl."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **entry}, default=str) + "\n")

    def share(self, other: RunFolder, part: str) -> None:
        """Give `other` this run's `part` (baseline or control) with all that was computed of it; one copy on disk."""
        for source, target in (
            (self.path / part, other.path / part),
            (self.path / "exports" / part, other.path / "exports" / part),
        ):
            if source.is_dir() and not target.exists():
                shutil.copytree(source, target, copy_function=_link)
        other.measured.mkdir(exist_ok=True)
        for source in self.measured.glob("*"):  # named by what they depend on: none is taken for another
            if not (other.measured / source.name).exists():
                _link(source, other.measured / source.name)

    def write_plan(self, plan: Plan) -> None:
        """Write plan.json."""
        write_text(self.path / "plan.json", plan.model_dump_json(indent=2) + "\n")


def open_folder(path: str | Path, loaded: LoadedRecipe, *, resume: bool) -> RunFolder:
    """Create the run folder, empty it of an earlier run, or take that up again with `resume`.

    Raises RecipeError when `resume` meets another recipe, HFCompressError when the folder is not a run's or cannot be
    written.
    """
    folder = RunFolder(Path(path))
    previous = _previous_hash(folder)
    if resume and previous is not None and previous != loaded.stages_hash:
        raise RecipeError(
            f"{path} holds a run of another recipe (or other --set values); resume with the same ones (benchmark, "
            "require, publish and evaluate.control may differ), or choose another --output"
        )
    try:
        if not resume and previous is not None:
            _empty(folder.path)
        elif previous is None and folder.path.exists() and any(folder.path.iterdir()):
            raise HFCompressError(
                f"{path} exists and is not a run folder: choose another --output, nothing was touched"
            )
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HFCompressError(f"cannot use {path} as the output folder: {error.strerror}") from error
    write_text(folder.path / _MARK, json.dumps({"stages_hash": loaded.stages_hash}) + "\n")
    write_text(folder.path / "recipe.yaml", loaded.text)
    return folder


def holds(path: Path, loaded: LoadedRecipe) -> bool:
    """Return whether `path` holds a run, done or not, whose stages are those of this recipe."""
    return _previous_hash(RunFolder(path)) == loaded.stages_hash


def _link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or where the disk knows no such thing a copy: nothing writes into a file there is."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _previous_hash(folder: RunFolder) -> str | None:
    try:
        return str(json.loads((folder.path / _MARK).read_text(encoding="utf-8"))["stages_hash"])
    except (OSError, ValueError, KeyError):
        return None


def _empty(path: Path) -> None:
    for child in path.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
