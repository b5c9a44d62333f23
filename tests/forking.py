"""New Python processes of a test as forks of a server that has imported the libraries already: seconds saved for each.

`install` puts `Popen` in the place of `subprocess.Popen`. What starts this interpreter with ``-c``, ``-m`` or a script
becomes a fork, in the tests as in what they start; everything else, and every process of a test that is marked
``own_interpreter``, is started as ever. The server (`fork_server.py`) has never imported hfcompress, so a fork
is as new as an interpreter to what tests ask: whether the package was imported, and what it then reads and writes.
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

FOLDER = "HFCOMPRESS_TESTS_FORK_SERVER"  # environment variable: where the sockets of the server lie
READ_AT_IMPORT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DATASETS_")  # variables that libraries read only once
READ_AT_USE = {"HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_DISABLE_PROGRESS_BARS"}
START_S = 240.0

_real = subprocess.Popen
_parameters = [*inspect.signature(_real._execute_child).parameters][1:]  # type: ignore[attr-defined]
_unusual = {"preexec_fn": None, "pass_fds": (), "shell": False, "gid": None, "gids": None, "uid": None, "umask": -1}


def install(folder: Path | None = None) -> None:
    """Let new Python processes be forks; `folder` is where the server may put its sockets, else as the parent says."""
    if folder is not None:
        os.environ[FOLDER] = str(folder)
    if sys.platform == "linux" and FOLDER in os.environ:
        subprocess.Popen = Popen  # type: ignore[misc]


def libraries_as_imported(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that decide what the libraries are once they are imported."""
    return {k: v for k, v in environment.items() if k.startswith(READ_AT_IMPORT) and k not in READ_AT_USE}


class Popen(_real):  # type: ignore[misc, valid-type]
    """A process that is a fork of the server where it can be, and else a process like any other."""

    _line: socket.socket | None = None

    def _execute_child(self, *given: Any) -> None:
        asked = dict(zip(_parameters, given, strict=True))
        if not _can_fork(asked):
            super()._execute_child(*given)
            return
        environment = dict(os.environ if asked["env"] is None else asked["env"])
        request = {
            "words": [*map(os.fspath, asked["args"])][1:],
            "environment": environment,
            "folder": os.path.abspath(asked["cwd"] or "."),  # noqa: PTH100 - it may be bytes
            "session": asked["start_new_session"],
        }
        files = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        self._line = _connect(environment)
        text = json.dumps(request).encode()
        fds = [own if fd == -1 else fd for own, fd in enumerate(files)]
        socket.send_fds(self._line, [len(text).to_bytes(8, "big")], fds)
        self._line.sendall(text)
        self.pid = json.loads(_read_line(self._line))
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in ends))  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._line is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc, no-any-return]
        if wait_flags & os.WNOHANG and not select.select([self._line], [], [], 0)[0]:
            return 0, 0
        said = _read_line(self._line)
        self._line.close()
        return self.pid, json.loads(said or "9")  # a server that is gone has taken its forks along

    def _internal_poll(self, _deadstate: int | None = None, *given: Any) -> int | None:
        if self._line is None:
            return super()._internal_poll(_deadstate, *given)  # type: ignore[misc, no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid == self.pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


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
    with (folder / "log").open("wb") as log:
        _real(
            [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
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
