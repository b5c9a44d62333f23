"""A fork of the test's server is as good as a new interpreter, but for the libraries that it has imported already."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forks on Linux alone")

SAY = """
import json, os, sys
mine = {"hfcompress" in sys.modules, "torch" in sys.modules}
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "main": __name__, "path": sys.path[0], "parent": os.getppid(),
    "ours": "hfcompress" in sys.modules, "torch": "torch" in sys.modules, "hub": "huggingface_hub" in sys.modules,
    "environment": dict(os.environ), "read": sys.stdin.read(),
}))
"""


def said(*words: str, **more: Any) -> dict[str, Any]:
    """Run this interpreter with `words` and return what it says of itself."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, input="given", **more)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "say.py"
    path.write_text(SAY)
    return path


def test_a_fork_has_its_words_folder_environment_and_files_and_never_this_package(script, tmp_path):
    found = said(str(script), "a", cwd=tmp_path, env=os.environ | {"MINE": "1"})
    assert found["parent"] != os.getpid(), "no fork"
    assert (found["argv"], found["cwd"], found["main"]) == ([str(script), "a"], str(tmp_path), "__main__")
    assert found["path"] == str(tmp_path) and found["environment"]["MINE"] == "1" and found["read"] == "given"
    assert found["torch"] and found["hub"] and not found["ours"]
    assert said("-P", str(script))["path"] != str(tmp_path), "its folder would hide modules of the standard library"
    assert said("-m", "say", cwd=tmp_path)["argv"] == [str(script)]
    assert said("-c", SAY, "a")["argv"] == ["-c", "a"]


def test_another_hub_is_another_set_of_libraries(script):
    code = "from huggingface_hub import constants; print(constants.ENDPOINT)"
    words = {"env": os.environ | {"HF_ENDPOINT": "http://localhost:1"}, "text": True}
    assert subprocess.check_output([sys.executable, "-c", code], **words) == "http://localhost:1\n"
    assert not said(str(script), env=words["env"])["hub"]


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('why')", 1, "why\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(9)", -signal.SIGINT, "Keyb"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ],
)
def test_how_it_ends_is_told(code, status, words):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status and words in done.stderr


def test_it_can_be_waited_for_and_killed():
    child = subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1, text=True)
    assert child.stdout.readline() == "1\n" and child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.05)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL


def test_a_fork_starts_forks(script):
    code = f"import subprocess, sys; print(subprocess.run([sys.executable, {str(script)!r}], input=b'').returncode)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[0])
    assert found["parent"] == json.loads(subprocess.check_output([sys.executable, "-c", SAY], input=b""))["parent"]


@pytest.mark.own_interpreter
def test_a_test_may_ask_for_a_real_interpreter():
    code = "import os, sys; print(os.getppid(), 'torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == f"{os.getpid()} False\n"


def test_what_cannot_be_a_fork_is_a_process_as_ever():
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getppid())"], capture_output=True, umask=0o22)
    assert int(done.stdout) == os.getpid()
    assert subprocess.run(["true"], check=False).returncode == 0
