"""The process that test processes are forks of: it imports libraries, never hfcompress, and computes nothing itself.

Two servers, one a fork of the other: "some" has imported what reads no settings of the Hub from the environment,
"all" has imported transformers and what builds on it as well. A request names the words after `python`, the
environment, the folder and the three standard files; the answers are the process id and, once it has ended, its
status as `os.waitpid` gives it. Both servers end with the process that owns the folder, and when the folder is removed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import Any

SOME = (
    "torch torch.distributed torch._dynamo torch.utils.data numpy scipy.stats sklearn.metrics sklearn.datasets "
    "sklearn.feature_extraction.text matplotlib.pyplot pandas pyarrow.csv PIL.Image yaml typer rich.progress "
    "pydantic jinja2 safetensors.torch safetensors.numpy zstandard onnx onnxruntime onnxscript optuna "
)
ALL = (
    "transformers transformers.trainer transformers.models.auto.modeling_auto "
    "transformers.models.bert.modeling_bert transformers.models.vit.modeling_vit "
    "transformers.image_processing_backends transformers.quantizers.auto "
    "transformers.models.auto.image_processing_auto transformers.tokenization_utils_tokenizers datasets peft "
    "accelerate tokenizers bitsandbytes "
)
CHECK_S = 1.0


def import_all(names: str) -> None:
    """Import what is installed of these."""
    for name in names.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


class Server:
    """Answers on one socket, and is the parent of what it forks."""

    def __init__(self, listener: socket.socket, folder: Path, owner: int) -> None:
        self.listener, self.folder, self.owner = listener, folder, owner
        self.lines: dict[int, socket.socket] = {}  # by process
        self.woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def serve(self) -> None:
        """Fork until the owner or the folder is gone."""
        while self.folder.exists() and _lives(self.owner):
            ready, _, _ = select.select([self.listener, self.woken], [], [], CHECK_S)
            if self.woken in ready:
                os.read(self.woken, 4096)
            self._reap()
            if self.listener in ready:
                line, _ = self.listener.accept()
                with contextlib.suppress(OSError, ValueError):  # who asked has gone
                    self._start(line)

    def _start(self, line: socket.socket) -> None:
        size, fds, _, _ = socket.recv_fds(line, 8, 3)
        text = b""
        while len(text) < int.from_bytes(size, "big") and (more := line.recv(1 << 16)):
            text += more
        request = json.loads(text)
        pid = os.fork()
        if pid == 0:
            self._forget(line)
            _become(request, fds)
        for fd in fds:
            os.close(fd)
        self.lines[pid] = line
        line.sendall(f"{pid}\n".encode())

    def _forget(self, line: socket.socket) -> None:
        """In a fork: be no server."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for one in (self.listener, line, *self.lines.values()):
            one.close()
        os.close(self.woken)
        os.close(self._wake)

    def _reap(self) -> None:
        for pid in [*self.lines]:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                line = self.lines.pop(pid)
                with contextlib.suppress(OSError):
                    line.sendall(f"{status}\n".encode())
                line.close()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _become(request: dict[str, Any], fds: list[int]) -> None:
    """Be the process that was asked for, to its end; the standard files keep their objects, which loggers hold."""
    status = 1
    try:
        for own, fd in enumerate(fds):
            os.dup2(fd, own)
            os.close(fd)
        if request["session"]:
            os.setsid()
        _enter(request["environment"], request["folder"])
        status = _status_of(request["words"])
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            importlib.import_module("atexit")._run_exitfuncs()
        for file in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                file.flush()
        if status == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(status)


def _enter(environment: dict[str, str], folder: str) -> None:
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = [path for path in sys.path if path not in paths]
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    importlib.invalidate_caches()
    sys.modules["torch"].set_num_threads(int(environment.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    sys.modules["forking"].install()


def _status_of(words: list[str]) -> int:
    """Run what the words after `python` say, and return its exit status."""
    try:
        _run(words)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return (ended.code or 0) & 0xFF
        print(ended.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _run(words: list[str]) -> None:
    options = [word for word in words[:2] if word in ("-P", "-u")]
    words = words[len(options) :]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if "-u" in options:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    if words[0] == "-c":
        sys.argv, place = ["-c", *words[2:]], ""
    elif words[0] == "-m":
        sys.argv, place = words[1:], os.getcwd()  # noqa: PTH109 - as python does
    else:
        sys.argv, place = words, str(Path(words[0]).resolve().parent)
    if "-P" not in options:
        sys.path.insert(0, place)
    if words[0] == "-c":
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    elif words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


def _listen(folder: Path, name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / f".{name}"))
    listener.listen(64)
    (folder / f".{name}").rename(folder / name)
    return listener


def main() -> None:
    """Be both servers."""
    folder = Path(sys.argv[1])
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).parent))
    importlib.import_module("forking")
    sys.path.pop(0)
    owner = int((folder / "owner").read_text())
    import_all(SOME)
    some, everything = _listen(folder, "some"), _listen(folder, "all")
    if os.fork():
        everything.close()
        served = some
    else:
        some.close()
        import_all(ALL)
        served = everything
    assert "hfcompress" not in sys.modules
    gc.collect()
    gc.freeze()  # forks share what was imported, and never look through it for garbage
    Server(served, folder, owner).serve()
    os._exit(0)


if __name__ == "__main__":
    main()
