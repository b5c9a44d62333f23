"""`hfcompress push`: which run goes where, and what would go up."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table

from ..checkpoint import is_stock
from ..core.errors import PublishError
from ..measure.batches import read_batches
from ..measure.result import read_result
from ..publish.alone import check_code
from ..publish.code import Code, code_for
from ..publish.hub import Target, planned_upload, push_run
from ..publish.rows import si
from ..recipe.load import load_recipe
from ..recipe.schema import REPO_ID
from .folder import RunFolder
from .undamaged import require_undamaged
from .verify import run_folder, verify_run


@dataclass(frozen=True)
class Push:
    """A run, the repository it goes to, and the loader's code if that goes along."""

    folder: RunFolder
    repo_id: str
    private: bool | None
    code: Code | None = None
    needs_no_code: bool = False  # it was asked for, but transformers alone loads the model


def pushes(
    folders: Sequence[Path], repo_id: str | None, private: bool | None, with_code: bool | None = None
) -> list[Push]:
    """Return what goes where: to `repo_id`, or as each run's recipe says; PublishError where neither tells.

    `with_code` says whether the loader's code goes along; None: as the recipe says.
    """
    if repo_id is not None and len(folders) > 1:
        raise PublishError("--repo-id names one repository: give it with one run, and several by `publish:` of theirs")
    if repo_id is not None and not re.fullmatch(REPO_ID, repo_id):
        raise PublishError(f"--repo-id {repo_id}: write it as user/name, of letters, digits, '-', '_' and '.'")
    found = [_push(run_folder(folder), repo_id, private, with_code) for folder in folders]
    for repo, count in Counter(one.repo_id for one in found).items():
        if count > 1:
            raise PublishError(f"{count} of these runs go to {repo}, where each would take the place of the one before")
    return found


def _push(folder: RunFolder, repo_id: str | None, private: bool | None, with_code: bool | None) -> Push:
    result = read_result(folder.path)
    recipe = folder.path / "recipe.yaml"
    publish = load_recipe(recipe, result.overrides).recipe.publish if recipe.exists() else None
    target = repo_id or (publish.repo_id if publish else None)
    if target is None:
        raise PublishError(f"{folder.path}: say where to: --repo-id user/name, or `publish:` in the recipe")
    private = private if private is not None else (publish.private if publish else None)
    wanted = with_code if with_code is not None else publish and publish.code
    if not (wanted and (folder.model / "config.json").is_file()):  # without that the push itself is refused
        return Push(folder, target, private)
    if is_stock(folder.model):
        return Push(folder, target, private, needs_no_code=True)
    return Push(folder, target, private, code_for(folder.model, result.auto_class))


def push_one(one: Push, target: Target) -> str:
    """Verify and upload a run; return the address of the repository, branch or pull request."""

    def verify(_: Path) -> None:
        result = verify_run(one.folder)
        if one.code is not None:
            batch = next(read_batches(one.folder.batches))
            inputs = {name: torch.from_numpy(values[:2]) for name, values in batch.items() if name != "labels"}
            check_code(one.folder.model, one.code, result.auto_class, result.dtype, inputs)

    return push_run(one.folder.path, one.repo_id, private=one.private, verify=verify, target=target, code=one.code)


def upload_table(one: Push, target: Target) -> Table:
    """Return the files that would go up, with their sizes; CheckpointError where a weight is not as it was saved."""
    require_undamaged(one.folder.model, read_result(one.folder.path))
    files = planned_upload(one.folder.path, one.repo_id, one.code, target)
    title = escape(f"{one.repo_id} (nothing was sent)")
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False)
    table.add_column("file")
    table.add_column("size", justify="right")
    for name, size in files.items():
        table.add_row(escape(name), si(size, "B"))
    table.add_section()
    table.add_row(f"{len(files)} files", si(sum(files.values()), "B"))
    return table
