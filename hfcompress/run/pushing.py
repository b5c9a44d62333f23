"""`hfcompress push`: which run goes where, and what would go up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ..core.errors import PublishError
from ..measure.result import read_result
from ..publish.hub import Target, planned_upload, push_run
from ..publish.rows import si
from ..recipe.load import load_recipe
from .folder import RunFolder
from .verify import run_folder, verify_run


@dataclass(frozen=True)
class Push:
    """A run and the repository it goes to."""

    folder: RunFolder
    repo_id: str
    private: bool | None


def pushes(folders: Sequence[Path], repo_id: str | None, private: bool | None) -> list[Push]:
    """Return what goes where: to `repo_id`, or as each run's recipe says; PublishError where neither tells."""
    if repo_id is not None and len(folders) > 1:
        raise PublishError("--repo-id names one repository: give it with one run, and several by `publish:` of theirs")
    return [_push(run_folder(folder), repo_id, private) for folder in folders]


def _push(folder: RunFolder, repo_id: str | None, private: bool | None) -> Push:
    read_result(folder.path)
    recipe = folder.path / "recipe.yaml"
    publish = load_recipe(recipe).recipe.publish if recipe.exists() else None
    target = repo_id or (publish.repo_id if publish else None)
    if target is None:
        raise PublishError(f"{folder.path}: say where to: --repo-id user/name, or `publish:` in the recipe")
    return Push(folder, target, private if private is not None else (publish.private if publish else None))


def push_one(one: Push, target: Target) -> str:
    """Verify and upload a run; return the address of the repository, branch or pull request."""

    def verify(_: Path) -> None:
        verify_run(one.folder)

    return push_run(one.folder.path, one.repo_id, private=one.private, verify=verify, target=target)


def upload_table(one: Push) -> Table:
    """Return the files that would go up, with their sizes."""
    files = planned_upload(one.folder.path, one.repo_id)
    table = Table(title=f"{one.repo_id} (nothing was sent)", title_justify="left", title_style="bold", show_edge=False)
    table.add_column("file")
    table.add_column("size", justify="right")
    for name, size in files.items():
        table.add_row(name, si(size, "B"))
    table.add_section()
    table.add_row(f"{len(files)} files", si(sum(files.values()), "B"))
    return table
