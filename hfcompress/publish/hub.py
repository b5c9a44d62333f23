"""The one writer to the network: a folder becomes a commit on the Hub, whole or not at all."""

from __future__ import annotations

import contextlib
import re
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from ..core.errors import PublishError
from ..measure.result import read_result
from .card import render_card, write_card, write_figures
from .code import Code, is_code
from .examples import write_grid

ATTEMPTS = 4
FIRST_WAIT_S = 1.0  # doubles from one attempt to the next

_LEFTOVER = re.compile(
    r"(checkpoint-[0-9]+|runs|__pycache__|optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state.*\.pth"
    r"|training_args\.bin|trainer_state\.json|events\.out\.tfevents.*)"
)
_PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".onnx", ".onnx.data", ".onnx_data")
_TRANSIENT = (408, 409, 412, 429, 500, 502, 503, 504)
_ADVICE = {
    400: "the Hub refuses what was sent",
    401: "the Hub does not accept the token: make one with write access at https://huggingface.co/settings/tokens, "
    "then run `hf auth login` or set HF_TOKEN",
    403: "this token may not write there: it needs write access, and its user the right to write in that namespace",
    404: "there is no such repository or namespace, or this token cannot see it: check the spelling",
    409: "another change of the repository is under way",
    412: "another change of the repository is under way",
    413: "the Hub finds a file too large",
    429: "the Hub asks to slow down",
}
T = TypeVar("T")


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
    result = read_result(run / "result.json")
    examples = write_grid(run, run / "model")
    figures, libraries = write_figures(result, run / "model"), code.libraries if code else None
    place: dict[str, Any] = {"repo_id": repo_id, "revision": target.branch}
    card = render_card(result, *figures, **place, examples=examples, libraries=libraries)
    made = {"README.md": card.encode(), "result.json": (run / "result.json").read_bytes()}
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
    if not target.create_pr:
        _persist(lambda: _create(api, name, private, target.branch), name, secret)
    commit = _persist(
        lambda: _commit(api, name, contents, commit_message, target), name, secret, unsure=not target.create_pr
    )
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

    return _persist(gather, f"the collection {title!r}", secret)


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
    return f"{_persist(lambda: HfApi(token=secret).whoami()['name'], repo_id, secret)}/{repo_id}"


def files_to_upload(folder: Path) -> dict[str, Path]:
    """Return a checkpoint folder's files by their path in the repository, dotfiles and training leftovers left out.

    Raises PublishError when the folder holds no safetensors, or a pickle.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    files = {name: path for name, path in files.items() if not any(map(_stays_here, name.split("/")))}
    for name, path in files.items():
        if _is_pickle(path):
            raise PublishError(
                f"{name} is a pickle, which can run code where it is loaded: save weights as safetensors"
            )
    if not any(name.endswith(".safetensors") and "/" not in name for name in files):
        inner = f" Did you mean {folder / 'model'}?" if (folder / "model" / "config.json").is_file() else ""
        raise PublishError(f"{folder} holds no safetensors file, so it is not a checkpoint.{inner}")
    return files


def _stays_here(part: str) -> bool:
    return part.startswith(".") or _LEFTOVER.fullmatch(part) is not None


def _is_pickle(path: Path) -> bool:
    """Return whether `path` is named or built like a pickle."""
    # Raw numbers may begin like anything; the .bin beside an OpenVINO .xml is raw numbers too.
    if path.name.endswith(_WEIGHTS) or (path.suffix == ".bin" and path.with_suffix(".xml").is_file()):
        return False
    if path.suffix in _PICKLES:
        return True
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    with path.open("rb") as file:
        start = file.read(2)
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5  # PROTO, and the protocols in use


def _create(api: HfApi, repo_id: str, private: bool | None, branch: str | None) -> None:
    """Make repository and branch unless they are there; PublishError for a public one that was to be private."""
    with contextlib.suppress(KeyError):  # the client looks for an address in a 409, which not every server sends
        api.create_repo(repo_id, private=private, exist_ok=True)
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
    stale = [name for name in there if (name.endswith(_WEIGHTS) or is_code(name)) and name not in contents]
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


def _persist(action: Callable[[], T], repo_id: str, token: str, *, unsure: bool = True) -> T:
    """Return `action()`, tried again with growing waits while the Hub is only troubled; otherwise PublishError.

    Where it is `unsure` whether a request whose answer was lost was carried out, it is sent again too: not for a pull
    request, which would be opened twice.
    The error is raised outside the handler, so that it carries no context: the original may quote the token.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (HTTPError, OSError, ValueError, RuntimeError) as caught:
            message = _explain(caught)
            again = _is_transient(caught) and (unsure or isinstance(caught, HfHubHTTPError))
        if not again or attempt == ATTEMPTS:
            break
        time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
    tried = f" after {attempt} attempts" if attempt > 1 else ""
    text = f"pushing to {repo_id} failed{tried}: {message}. All files go up in one commit, so nothing is half-written "
    raise PublishError((text + "and pushing again is safe.").replace(token, "***"))


def _is_transient(error: Exception) -> bool:
    """Return whether the same request may well succeed a moment later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT
    return isinstance(error, HTTPError | ConnectionError | TimeoutError) and not isinstance(error, OfflineModeIsEnabled)


def _explain(error: Exception) -> str:
    """Return in plain words what went wrong and what to do."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to push"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        advice = _ADVICE.get(status, "the Hub is in trouble" if status >= 500 else "the Hub refuses")
        said = f": {error.server_message}" if error.server_message else ""
        return f"{advice} (it answered {status}{said})"
    if _is_transient(error):
        return f"the connection to the Hub was cut ({type(error).__name__}: {error})"
    return f"{type(error).__name__}: {error}".rstrip(".")
