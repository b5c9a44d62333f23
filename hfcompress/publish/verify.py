"""The last check before publishing: run the card's own code, in a fresh process, against the folder."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..core.errors import PublishError
from ..measure.result import Result
from .snippet import classifies, loading_snippet, onnx_snippet

_MARK = "hfcompress-check:"
_CHECK = f"""
import json as _json
_labels = model.config.num_labels if "model" in globals() else None
_finite = bool((logits - logits == 0).all())  # false for infinities and NaN, in torch and numpy alike
print({_MARK!r} + _json.dumps(dict(shape=list(logits.shape), labels=_labels, finite=_finite)))
"""


def run_snippet(result: Result, folder: Path, timeout_s: float = 600.0) -> str:
    """Execute the loading code of the card of `result` against `folder` and return what it printed.

    The ONNX code is executed too when the run exported such a file and onnxruntime is installed.
    Raises PublishError, with the end of the error output, when the code fails or its logits are not
    finite or not of shape (1, labels).
    """
    location = str(folder.resolve())
    printed, facts = _run(loading_snippet(result, location), timeout_s)
    labels = facts["labels"]
    _check(result, facts, labels)
    onnx = onnx_snippet(result, location, hub=False)
    if onnx is not None and importlib.util.find_spec("onnxruntime") is not None:
        more, facts = _run(onnx, timeout_s)
        _check(result, facts, labels)
        printed += more
    return printed


def _check(result: Result, facts: dict[str, Any], labels: int) -> None:
    if not facts["finite"]:
        raise PublishError("the card's code runs, but the logits it computes are not finite: the model must not go out")
    if classifies(result) and facts["shape"] != [1, labels]:
        raise PublishError(
            f"the card's code gives logits of shape {tuple(facts['shape'])}, but config.json promises (1, {labels})"
        )


def _run(code: str, timeout_s: float) -> tuple[str, dict[str, Any]]:
    """Run `code` in a process without network and token; return its output and the facts about `logits`."""
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONIOENCODING": "utf-8"}
    with tempfile.TemporaryDirectory() as place:
        script = Path(place, "snippet.py")
        script.write_text(code + _CHECK, encoding="utf-8")
        command = [sys.executable, str(script)]
        try:
            done = subprocess.run(  # the same interpreter, and the text is ours
                command,
                cwd=place,
                env=environment,
                capture_output=True,
                encoding="utf-8",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PublishError(f"the card's code did not finish within {timeout_s:.0f} s") from None
    printed, mark, facts = done.stdout.partition(_MARK)
    if done.returncode != 0 or not mark:
        tail = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise PublishError(f"the card's own loading code fails, so the model must not go out:\n{tail}")
    return printed, json.loads(facts)
