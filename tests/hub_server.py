"""A Hub on 127.0.0.1 for tests: repositories, commits, large files and downloads over the real protocol, with faults.

It speaks what huggingface_hub sends with HF_HUB_DISABLE_XET=1. Use it as a context manager; HF_ENDPOINT takes its
`endpoint`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_LocalTestTokenLocalTestTokenLocal"
USER = "tester"
LARGE = (".safetensors", ".onnx", ".bin", ".png")
RELATIONS = {"adapter", "merge", "quantized", "finetune"}


@dataclass(frozen=True)
class Entry:
    """One file of a commit: its SHA-256 and whether it is stored as a large file."""

    sha256: str
    large: bool


@dataclass
class Commit:
    """A commit: its id, its message and every file of the tree."""

    sha: str
    message: str
    files: dict[str, Entry]


@dataclass
class Repo:
    """A repository: the commits of main, and those of its other branches and pull requests."""

    id: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def add(self, message: str, files: dict[str, Entry], branch: str = "main") -> Commit:
        commits = self.commits if branch == "main" else self.branches[branch]
        text = f"{self.id}{branch}{len(commits)}{message}{sorted((n, entry.sha256) for n, entry in files.items())}"
        commits.append(Commit(hashlib.sha1(text.encode()).hexdigest(), message, files))
        return commits[-1]

    def find(self, revision: str) -> Commit | None:
        if revision in ("", "main"):
            return self.head
        if revision in self.branches:
            return self.branches[revision][-1]
        every = [*self.commits, *(commit for commits in self.branches.values() for commit in commits)]
        return next((commit for commit in every if commit.sha == revision), None)


@dataclass
class Fault:
    """Answer the next `times` requests whose ``METHOD /path`` contains `route` wrongly.

    `status` None cuts the connection: in the middle of the request, or `after` it was carried out. `silent`: the
    request is taken and not answered. `html`: a page comes back, as of a proxy, with `status`.
    """

    route: str
    times: int
    status: int | None = None
    after: bool = False
    silent: bool = False
    html: bool = False


class RefusalError(Exception):
    """A request the server answers with an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class Answer:
    """What goes back to the client; `body` is JSON unless it is bytes."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """The server's state; start it with ``with Hub() as hub``."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.collections: dict[str, tuple[str, list[str]]] = {}  # title and items by slug
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def fail(self, route: str, status: int | None = None, times: int = 1, **more: bool) -> None:
        """Plan a fault; see `Fault`."""
        self.faults.append(Fault(route, times, status, **more))

    def content(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of the newest commit."""
        commit = self.repos[repo_id].find(revision)
        assert commit is not None, f"{repo_id} has no {revision}"
        return {name: self.blobs[entry.sha256] for name, entry in commit.files.items()}

    def take_fault(self, request: str) -> Fault | None:
        """Return the fault planned for this request and count it down."""
        for fault in self.faults:
            if fault.times > 0 and fault.route in request:
                fault.times -= 1
                return fault
        return None

    def store(self, data: bytes) -> str:
        """Keep `data` and return its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        return sha256

    def git_id(self, entry: Entry) -> str:
        """Return the id git gives the file's content."""
        data = self.blobs[entry.sha256]
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def metadata_errors(card: str) -> list[str]:
    """Return what the Hub would refuse in the YAML block of a card."""
    block = re.match(r"---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    if block is None:
        return ["no metadata block"]
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"metadata is not YAML: {error}"]
    errors = []
    for key in ("base_model", "pipeline_tag", "library_name", "license"):
        if key in data and not isinstance(data[key], str):
            errors.append(f"{key} must be a string")
    for key in ("tags", "datasets", "metrics"):
        if key in data and not all(isinstance(item, str) for item in data[key]):
            errors.append(f"{key} must be a list of strings")
    for name in [data.get("base_model"), *(data.get("datasets") or [])]:
        if name is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            errors.append(f"{name!r} is not a Hub id")
    if data.get("base_model_relation", "finetune") not in RELATIONS:
        errors.append(f"base_model_relation must be one of {sorted(RELATIONS)}")
    return errors + _index_errors(data.get("model-index", []))


def _index_errors(index: list[dict[str, Any]]) -> list[str]:
    errors = []
    for model in index:
        if not isinstance(model.get("name"), str):
            errors.append("model-index: name is required")
        for result in model.get("results", []):
            if "type" not in result.get("task", {}):
                errors.append("model-index: task.type is required")
            if not {"type", "name"} <= set(result.get("dataset", {})):
                errors.append("model-index: dataset.type and dataset.name are required")
            if not all({"type", "value"} <= set(metric) for metric in result.get("metrics", [{}])):
                errors.append("model-index: metrics need type and value")
    return errors


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def _serve(self) -> None:
        path, self.query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        request = f"{self.command} {path}"
        length = int(self.headers.get("Content-Length") or 0)
        with self.hub.lock:
            self.hub.requests.append(request)
            fault = self.hub.take_fault(request)
        if fault and fault.silent:
            self.rfile.read(length)
            self.hub.stopped.wait()
            self._cut()
            return
        if fault and fault.status is None and not fault.after:
            self.rfile.read(length // 2)
            self._cut()
            return
        body = self.rfile.read(length)
        if fault and fault.status is not None:
            if fault.html:
                page = b"<html><title>Log in</title></html>"
                self._send(Answer(page, fault.status, {"Content-Type": "text/html"}))
                return
            message = f"fault of the test, and your header was {self.headers.get('Authorization')}"
            self._send(Answer({"error": message}, fault.status))
            return
        with self.hub.lock:
            answer = self._answer(path, body)
        if fault:
            self._cut()
            return
        self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, answer: Answer) -> None:
        raw = isinstance(answer.body, bytes)
        data = answer.body if raw else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        if "Content-Type" not in answer.headers:
            self.send_header("Content-Type", "application/octet-stream" if raw else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _answer(self, path: str, body: bytes) -> Answer:
        try:
            for pattern, handle in _ROUTES:
                found = re.fullmatch(pattern, f"{self.command} {path}")
                if found:
                    return handle(self, found, body)
            raise RefusalError(404, f"no route {self.command} {path}")
        except RefusalError as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            return Answer({"error": refusal.message}, refusal.status, headers)

    @property
    def _authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _need_token(self) -> None:
        if not self._authorized:
            raise RefusalError(401, "Invalid username or password.")

    def _repo(self, repo_id: str) -> Repo:
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self._authorized):
            raise RefusalError(404, "Repository not found", "RepoNotFound")
        return repo

    def _commit_at(self, repo_id: str, revision: str) -> Commit:
        commit = self._repo(repo_id).find(revision)
        if commit is None:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def whoami(self, found: re.Match[str], body: bytes) -> Answer:
        self._need_token()
        return Answer(
            {
                "type": "user",
                "name": USER,
                "fullname": USER,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}},
            }
        )

    def validate_yaml(self, found: re.Match[str], body: bytes) -> Answer:
        errors = metadata_errors(json.loads(body)["content"])
        return Answer({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)

    def create(self, found: re.Match[str], body: bytes) -> Answer:
        self._need_token()
        wanted = json.loads(body)
        owner = wanted.get("organization") or USER
        repo_id = f"{owner}/{wanted['name']}"
        address = {"url": f"{self.hub.endpoint}/{repo_id}"}
        if owner != USER:
            raise RefusalError(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        if repo_id in self.hub.repos:
            return Answer({"error": "You already created this model repo", **address}, 409)
        self.hub.repos[repo_id] = Repo(repo_id, wanted.get("visibility") == "private")
        self.hub.repos[repo_id].add("initial commit", {})
        return Answer(address)

    def preupload(self, found: re.Match[str], body: bytes) -> Answer:
        self._need_token()
        old = self._commit_at(found["repo"], found["revision"]).files
        files = []
        for item in json.loads(body)["files"]:
            name = item["path"]
            mode = "lfs" if name.endswith(LARGE) else "regular"
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": False})
            if name in old:
                files[-1]["oid"] = old[name].sha256 if old[name].large else self.hub.git_id(old[name])
        return Answer({"files": files})

    def lfs_batch(self, found: re.Match[str], body: bytes) -> Answer:
        self._need_token()
        objects = []
        for item in json.loads(body)["objects"]:
            objects.append({"oid": item["oid"], "size": item["size"]})
            if item["oid"] not in self.hub.blobs:
                href = f"{self.hub.endpoint}/storage/{item['oid']}"
                objects[-1]["actions"] = {"upload": {"href": href, "header": {}}}
        return Answer({"transfer": "basic", "objects": objects})

    def put_blob(self, found: re.Match[str], body: bytes) -> Answer:
        if hashlib.sha256(body).hexdigest() != found["sha256"]:
            raise RefusalError(400, "the content does not have the announced SHA-256")
        self.hub.store(body)
        return Answer()

    def commit(self, found: re.Match[str], body: bytes) -> Answer:
        self._need_token()
        repo, message, branch = self._repo(found["repo"]), "", found["revision"]
        files = dict(self._commit_at(repo.id, branch).files)
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = Entry(self.hub.store(base64.b64decode(value["content"])), large=False)
            elif item["key"] == "lfsFile" and value["oid"] in self.hub.blobs:
                files[value["path"]] = Entry(value["oid"], large=True)
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise RefusalError(400, f"cannot commit {item['key']}")
        request = {}
        if self.query.get("create_pr") == ["1"]:
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
            request = {"pullRequestUrl": f"{self.hub.endpoint}/{repo.id}/discussions/{number}"}
            repo.branches[branch := f"refs/pr/{number}"] = []
        sha = repo.add(message, files, branch).sha
        address = f"{self.hub.endpoint}/{repo.id}/commit/{sha}"
        return Answer({"success": True, "commitOid": sha, "commitUrl": address, **request})

    def branch(self, found: re.Match[str], body: bytes) -> Answer:
        self._need_token()
        repo, name = self._repo(found["repo"]), found["revision"]
        if name in (*repo.branches, "main"):
            raise RefusalError(409, "Reference already exists")
        repo.branches[name] = list(repo.commits)
        return Answer({})

    def collections(self, found: re.Match[str], body: bytes) -> Answer:
        listed = [self._collection(slug) for slug in self.hub.collections]
        for place in listed:
            del place["position"]  # a list tells it by its order
        return Answer(listed)

    def collection(self, found: re.Match[str], body: bytes) -> Answer:
        return Answer(self._collection(found["slug"]))

    def create_collection(self, found: re.Match[str], body: bytes) -> Answer:
        self._need_token()
        wanted = json.loads(body)
        if wanted["namespace"] != USER:
            raise RefusalError(403, "You don't have the rights to create a collection there")
        words = re.sub(r"[^a-z0-9]+", "-", wanted["title"].lower())
        slug = f"{USER}/{words}-{len(self.hub.collections):024x}"
        self.hub.collections[slug] = (wanted["title"], [])
        return Answer(self._collection(slug))

    def add_item(self, found: re.Match[str], body: bytes) -> Answer:
        self._need_token()
        item = json.loads(body)["item"]["id"]
        self._repo(item)
        items = self.hub.collections[found["slug"]][1]
        if item in items:
            raise RefusalError(409, "already in the collection")
        items.append(item)
        return Answer(self._collection(found["slug"]))

    def _collection(self, slug: str) -> dict[str, Any]:
        title, items = self.hub.collections[slug]
        plain = [{"_id": f"{i:024x}", "id": item, "type": "model", "position": i} for i, item in enumerate(items)]
        owner = {"name": USER, "type": "user", "fullname": USER, "avatarUrl": "", "isPro": False}
        more = {"private": False, "theme": "blue", "upvotes": 0, "position": 0, "gating": False}
        return {"slug": slug, "title": title, "owner": owner, "items": plain, "lastUpdated": _DAY, **more}

    def tree(self, found: re.Match[str], body: bytes) -> Answer:
        entries = []
        for name, entry in sorted(self._commit_at(found["repo"], found["revision"]).files.items()):
            size = len(self.hub.blobs[entry.sha256])
            entries.append({"type": "file", "path": name, "size": size, "oid": self.hub.git_id(entry)})
            if entry.large:
                entries[-1]["lfs"] = {"oid": entry.sha256, "size": size, "pointerSize": 134}
        return Answer(entries)

    def info(self, found: re.Match[str], body: bytes) -> Answer:
        repo, commit = self._repo(found["repo"]), self._commit_at(found["repo"], found["revision"] or "")
        names = [{"rfilename": name} for name in sorted(commit.files)]
        return Answer(
            {"_id": "0" * 24, "id": repo.id, "sha": commit.sha, "private": repo.private, "tags": [], "siblings": names}
        )

    def resolve(self, found: re.Match[str], body: bytes) -> Answer:
        commit = self._commit_at(found["repo"], found["revision"])
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        entry = commit.files.get(found["name"])
        if entry is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return Answer({"error": "Entry not found"}, 404, headers)
        data = self.hub.blobs[entry.sha256]
        if not entry.large:
            return Answer(data, headers=headers | {"ETag": f'"{self.hub.git_id(entry)}"'})
        # Another netloc than the endpoint's, as on the real Hub: the client follows a redirect to the
        # same host itself and then misses X-Repo-Commit.
        location = f"http://localhost:{self.hub.port}/storage/{entry.sha256}"
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{entry.sha256}"', "Location": location}
        return Answer(b"", 302, headers)

    def get_blob(self, found: re.Match[str], body: bytes) -> Answer:
        data = self.hub.blobs[found["sha256"]]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return Answer(data)
        first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
        return Answer(data[first : last + 1], 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"})


_DAY = "2026-01-01T00:00:00.000Z"
_SLUG = r"(?P<slug>[^/]+/[^/]+)"
_REPO = r"(?P<repo>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
_ROUTES: list[tuple[str, Callable[[_Handler, re.Match[str], bytes], Answer]]] = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (r"POST /api/repos/create", _Handler.create),
    (r"GET /api/collections", _Handler.collections),
    (r"POST /api/collections", _Handler.create_collection),
    (rf"GET /api/collections/{_SLUG}", _Handler.collection),
    (rf"POST /api/collections/{_SLUG}/items", _Handler.add_item),
    (rf"POST /api/models/{_REPO}/branch/{_REVISION}", _Handler.branch),
    (rf"POST /api/models/{_REPO}/preupload/{_REVISION}", _Handler.preupload),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /storage/(?P<sha256>\w+)", _Handler.put_blob),
    (rf"POST /api/models/{_REPO}/commit/{_REVISION}", _Handler.commit),
    (rf"GET /api/models/{_REPO}/tree/{_REVISION}", _Handler.tree),
    (rf"GET /api/models/{_REPO}(?:/revision/{_REVISION})?", _Handler.info),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/{_REVISION}/(?P<name>.+)", _Handler.resolve),
    (r"(?:GET|HEAD) /storage/(?P<sha256>\w+)", _Handler.get_blob),
]
