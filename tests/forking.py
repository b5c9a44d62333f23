"""New Python processes of a test as forks of a server that has imported the libraries already: seconds saved for each.

After `install` what starts this interpreter with ``-c``, ``-m`` or a script, by `subprocess`, gets a fork, in the tests
as in what they start; everything else, and every process of a test that is marked ``own_interpreter``, is started as
ever. The server (`fork_server.py`) has never imported hfcompress, so a fork is as new as an interpreter to what tests
ask: whether the package was imported, and what it then reads and writes.
"""

from __future__ import annotations

import fcntl
import inspect
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

FOLDER = "HFCOMPRESS_TESTS_FORK_SERVER"  # environment variable: where the sockets of the server lie
READ_AT_IMPORT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DATASETS_")  # variables that libraries read only once
READ_AT_USE = {"HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_DISABLE_PROGRESS_BARS"}
START_S = 240.0

_Popen = subprocess.Popen  # a test may put something else in its place before the server is started
_plain = {name: getattr(subprocess.Popen, name) for name in ("_execute_child", "_try_wait", "_internal_poll")}
_parameters = [*inspect.signature(_plain["_execute_child"]).parameters][1:]
_unusual = {"preexec_fn": None, "pass_fds": (), "shell": False, "gid": None, "gids": None, "uid": None, "umask": -1}
_lines: WeakKeyDictionary[subprocess.Popen[Any], socket.socket] = WeakKeyDictionary()  # to the server, of each fork


def install(folder: Path | None = None) -> None:
    """Let new Python processes be forks; `folder` is where the server may put its sockets, else as the parent says.

    Methods are replaced, not the class: libraries import it by name.
    """
    if sys.platform != "linux":
        return
    if folder is not None:
        os.environ[FOLDER] = str(folder)
    for function in (_execute_child, _try_wait, _internal_poll):
        setattr(subprocess.Popen, function.__name__, function)


def libraries_as_imported(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that decide what the libraries are once they are imported."""
    return {k: v for k, v in environment.items() if k.startswith(READ_AT_IMPORT) and k not in READ_AT_USE}


def _execute_child(self: Any, *given: Any) -> None:
    asked = dict(zip(_parameters, given, strict=True))
    if FOLDER not in os.environ or not _can_fork(asked):
        _plain["_execute_child"](self, *given)
        return
    environment = dict(os.environ if asked["env"] is None else asked["env"])
    request = {
        "words": [*map(os.fspath, asked["args"])][1:],
        "environment": environment,
        "folder": os.path.abspath(asked["cwd"] or "."),  # noqa: PTH100 - it may be bytes
        "session": asked["start_new_session"],
    }
    files = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
    line = _lines[self] = _connect(environment)
    text = json.dumps(request).encode()
    fds = [own if fd == -1 else fd for own, fd in enumerate(files)]
    socket.send_fds(line, [len(text).to_bytes(8, "big")], fds)
    line.sendall(text)
    self.pid = json.loads(_read_line(line))
    self._child_created = True
    ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
    self._close_pipe_fds(*(asked[name] for name in ends))


def _try_wait(self: Any, wait_flags: int) -> tuple[int, int]:
    line = _lines.get(self)
    if line is None:
        return _plain["_try_wait"](self, wait_flags)  # type: ignore[no-any-return]
    if wait_flags & os.WNOHANG and not select.select([line], [], [], 0)[0]:
        return 0, 0
    said = _read_line(line)
    line.close()
    return self.pid, json.loads(said or "9")  # a server that is gone has taken its forks along


def _internal_poll(self: Any, _deadstate: int | None = None, *given: Any) -> int | None:
    if self not in _lines:
        return _plain["_internal_poll"](self, _deadstate, *given)  # type: ignore[no-any-return]
    if self.returncode is None and self._waitpid_lock.acquire(False):
        try:
            pid, status = self._try_wait(os.WNOHANG)
            if pid == self.pid:
                self._handle_exitstatus(status)
        finally:
            self._waitpid_lock.release()
    return self.returncode  # type: ignore[no-any-return]


def _can_fork(asked: dict[str, Any]) -> bool:
    if any(asked.get(name, usual) != usual for name, usual in _unusual.items()):
        return False
    words = asked["args"]
    if not isinstance(words, Sequence) or isinstance(words, str | bytes) or words[0] != sys.executable:
        return False
    rest = [word for word in map(os.fspath, words[1:]) if word not in ("-P", "-u")]
    return bool(rest) and (rest[0] in ("-c", "-m") or not rest[0].startswith("-"))


def _connect(environment: dict[str, str]) -> socket.socket:
    """Connect to the server whose libraries are those of the environment: all of them, or those that never read it."""
    folder = Path(os.environ[FOLDER])
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "environment").exists():
            _start(folder)
    servers = json.loads((folder / "environment").read_text())
    alike = libraries_as_imported(environment) == libraries_as_imported(servers)
    line = socket.socket(socket.AF_UNIX)
    line.connect(str(folder / ("all" if alike else "some")))
    return line


def _start(folder: Path) -> None:
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # no thread before a fork
    environment = os.environ | one
    del os.environ[FOLDER]  # the server is no fork
    try:
        with (folder / "log").open("wb") as log:
            _Popen(
                [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
    finally:
        os.environ[FOLDER] = str(folder)
    deadline = time.monotonic() + START_S
    while not (folder / "all").exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the fork server did not start: {(folder / 'log').read_text()}")
        time.sleep(0.02)
    (folder / "environment").write_text(json.dumps(environment))


def _read_line(line: socket.socket) -> str:
    said = b""
    while not said.endswith(b"\n") and (more := line.recv(64)):
        said += more
    return said.decode()
