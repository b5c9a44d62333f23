"""The one writer to the network: a folder becomes a commit on the Hub, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token

from ..core.errors import PublishError
from ..measure.result import read_result
from .card import render_card, write_card, write_figures
from .checkpoint_files import WEIGHTS, files_to_upload
from .code import Code, is_code
from .examples import write_grid
from .hub_requests import persist


@dataclass(frozen=True)
class Target:
    """Where in a repository a push goes: a branch, made when missing, or a pull request of its own."""

    branch: str | None = None
    create_pr: bool = False

    def __post_init__(self) -> None:
        if self.branch is not None and self.create_pr:
            raise PublishError("--create-pr opens a branch of its own: give it or --revision, not both")


MAIN = Target()


def push_run(
    run: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    verify: Callable[[Path], None] | None,
    target: Target = MAIN,
    code: Code | None = None,
) -> str:
    """Push the `model/` folder of a run, its result, and a card whose code loads from `repo_id`; return the address.

    `code` goes up beside them and stays out of the folder. The card on disk names the repository only once the push
    succeeded. Raises as `push`, and MeasureError when the run has no valid result.
    """
    secret = find_token(token)
    repo_id = full_repo_id(repo_id, secret)
    more = _made_here(run, repo_id, code, target)
    address = push(run / "model", repo_id, private=private, token=secret, verify=verify, more=more, target=target)
    write_card(run, repo_id, revision=target.branch)
    return address


def _made_here(run: Path, repo_id: str, code: Code | None, target: Target) -> dict[str, bytes]:
    """Return what goes up beside the model's files: the card, the result it can be checked against, and the code."""
    written = (run / "result.json").read_bytes()
    as_found = read_result(run / "result.json")
    result = as_found.without_local_paths()
    if result != as_found:  # an earlier release wrote it
        written = f"{result.model_dump_json(indent=2)}\n".encode()
    examples = write_grid(run, run / "model")
    figures, libraries = write_figures(result, run / "model"), code.libraries if code else None
    place: dict[str, Any] = {"repo_id": repo_id, "revision": target.branch}
    card = render_card(result, *figures, **place, examples=examples, libraries=libraries)
    made = {"README.md": card.encode(), "result.json": written}
    return made | (code.files if code else {})


def planned_upload(run: Path, repo_id: str, code: Code | None = None, target: Target = MAIN) -> dict[str, int]:
    """Return the files that `push_run` would send, with their bytes; touches no network."""
    more = _made_here(run, repo_id, code, target)
    sizes = {name: path.stat().st_size for name, path in files_to_upload(run / "model").items()}
    return dict(sorted((sizes | {name: len(content) for name, content in more.items()}).items()))


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload compressed model",
    verify: Callable[[Path], None] | None = None,
    more: Mapping[str, bytes] | None = None,
    target: Target = MAIN,
) -> str:
    """Upload a checkpoint folder to the Hub in one commit and return the address of the repository or pull request.

    `verify(folder)` runs before anything is sent and raises to stop it. `more` goes up in place of or beside the
    folder's files. The repository is made when missing (`private` as given, else as the account's default), unless a
    pull request is asked for; weight files and code of ours that it holds and this upload does not are removed in the
    same commit. Repeating an unchanged push makes no commit. Raises PublishError, whose message never contains the
    token.
    """
    files = files_to_upload(folder)
    secret = find_token(token)
    if verify is not None:
        verify(folder)
    contents: dict[str, Path | bytes] = {**files, **(more or {})}
    api = HfApi(token=secret, library_name="hfcompress")
    name = full_repo_id(repo_id, secret)
    made: list[str] = []
    existed = True
    try:
        if not target.create_pr:
            existed = persist(lambda: api.repo_exists(name), name, secret)
            persist(lambda: _create(api, name, private, target.branch, made), name, secret)
        commit = persist(
            lambda: _commit(api, name, contents, commit_message, target), name, secret, unsure=not target.create_pr
        )
    except PublishError as error:
        if existed or not made:
            raise
        raise PublishError(f"{error} Made before it failed, without these files: {made[0]}.") from None
    return commit.pr_url or f"{api.endpoint}/{name}" + (f"/tree/{target.branch}" if target.branch else "")


def collect(title: str, repo_ids: Sequence[str], *, private: bool = False, token: str | None = None) -> str:
    """Put repositories into the collection called `title`, made when missing; return its address.

    It belongs to the owner of the first repository. Raises PublishError, whose message never contains the token.
    """
    secret = find_token(token)
    api = HfApi(token=secret, library_name="hfcompress")
    names = [full_repo_id(name, secret) for name in repo_ids]
    owner = names[0].partition("/")[0]

    def gather() -> str:
        same = (c for c in api.list_collections(owner=owner) if c.title == title)
        collection = next(same, None) or api.create_collection(title, namespace=owner, private=private, exists_ok=True)
        for name in names:
            api.add_collection_item(collection.slug, name, "model", exists_ok=True)
        return f"{api.endpoint}/collections/{collection.slug}"

    return persist(gather, f"the collection {title!r}", secret)


def find_token(token: str | None = None) -> str:
    """Return `token`, else HF_TOKEN, else the stored login; PublishError when there is none or it cannot be one."""
    secret = (token or get_token() or "").strip()
    if not secret:
        raise PublishError(
            "no token: run `hf auth login` or set HF_TOKEN to a token with write access, "
            "from https://huggingface.co/settings/tokens"
        )
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise PublishError("the token holds blanks, line breaks or letters that no token has: copy it again")
    return secret


def full_repo_id(repo_id: str, token: str | None = None) -> str:
    """Return ``user/name``, asking the Hub who the token belongs to when `repo_id` is only a name."""
    if "/" in repo_id:
        return repo_id
    secret = find_token(token)
    return f"{persist(lambda: HfApi(token=secret).whoami()['name'], repo_id, secret)}/{repo_id}"


def _create(api: HfApi, repo_id: str, private: bool | None, branch: str | None, made: list[str]) -> None:
    """Make repository and branch unless they are there, and note in `made` that the repository is.

    Raises PublishError for a public repository that was to be private.
    """
    with contextlib.suppress(KeyError):  # the client looks for an address in a 409, which not every server sends
        api.create_repo(repo_id, private=private, exist_ok=True)
    made.append(f"the repository {api.endpoint}/{repo_id}")
    if private and not api.model_info(repo_id).private:
        raise PublishError(
            f"{repo_id} exists and is public, but private was asked for: nothing was sent. "
            "Make it private on the Hub, or choose another name."
        )
    if branch is not None:
        api.create_branch(repo_id, branch=branch, exist_ok=True)


def _commit(api: HfApi, repo_id: str, contents: dict[str, Path | bytes], message: str, target: Target) -> CommitInfo:
    """Bring the target to `contents` in one commit; the client makes none when nothing changed."""
    there = api.list_repo_files(repo_id, revision=target.branch)
    stale = [name for name in there if (name.endswith(WEIGHTS) or is_code(name)) and name not in contents]
    return api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(name, content) for name, content in contents.items()),
            *(CommitOperationDelete(name) for name in stale),
        ],
        commit_message=message,
        revision=target.branch,
        create_pr=target.create_pr,
    )
