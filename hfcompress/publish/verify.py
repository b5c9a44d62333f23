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
from .snippet import loading_snippet, onnx_snippet, prediction

_MARK = "hfcompress-check:"
_CHECK = f"""
import json as _json
_config = model.config if "model" in globals() else None
_sizes = _config and {{"label": _config.num_labels, "next token": getattr(_config, "vocab_size", None)}}
_finite = bool((logits - logits == 0).all())  # false for infinities and NaN, in torch and numpy alike
print({_MARK!r} + _json.dumps(dict(shape=list(logits.shape), sizes=_sizes, finite=_finite)))
"""


def run_snippet(result: Result, folder: Path, timeout_s: float = 600.0) -> str:
    """Execute the loading code of the card of `result` against `folder` and return what it printed.

    The ONNX code is executed too when the run exported such a file and onnxruntime is installed.
    Raises PublishError, with the end of the error output, when the code fails or its logits are not
    finite or not of the shape the model's config promises.
    """
    location = str(folder.resolve())
    printed, facts = _run(loading_snippet(result, location), timeout_s)
    size = facts["sizes"].get(prediction(result))
    _check(result, facts, size)
    onnx = onnx_snippet(result, location, hub=False)
    if onnx is not None and importlib.util.find_spec("onnxruntime") is not None:
        more, facts = _run(onnx, timeout_s)
        _check(result, facts, size)
        printed += more
    return printed


def _check(result: Result, facts: dict[str, Any], size: int | None) -> None:
    """Compare the shape of the logits with (1, labels), or (1, tokens, vocabulary); `size` is the last of them."""
    if not facts["finite"]:
        raise PublishError("the card's code runs, but the logits it computes are not finite: the model must not go out")
    shape, dimensions = facts["shape"], {"label": 2, "next token": 3}.get(prediction(result))
    if dimensions and (len(shape) != dimensions or shape[0] != 1 or shape[-1] != size):
        promised = f"(1, {size})" if dimensions == 2 else f"(1, tokens, {size})"
        raise PublishError(f"the card's code gives logits of shape {tuple(shape)}, but config.json promises {promised}")


def _run(code: str, timeout_s: float) -> tuple[str, dict[str, Any]]:
    """Run `code` and return its output and the facts about `logits`."""
    printed, mark, facts = run_program(code + _CHECK, "the card's own loading code", timeout_s).partition(_MARK)
    if not mark:
        raise PublishError(
            f"the card's own loading code ends before it should, so the model must not go out:\n{printed}"
        )
    return printed, json.loads(facts)


def run_program(code: str, what: str, timeout_s: float, *arguments: str) -> str:
    """Run `code` in a process of its own, without network and token, and return what it printed.

    Code of repositories that it runs is kept nowhere afterwards. Raises PublishError, which calls it `what`.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONIOENCODING": "utf-8"}
    with tempfile.TemporaryDirectory() as place:
        script = Path(place, "snippet.py")
        script.write_text(code, encoding="utf-8")
        try:
            done = subprocess.run(  # the same interpreter, and the text is ours
                [sys.executable, str(script), *arguments],
                cwd=place,
                env=environment | {"HF_MODULES_CACHE": str(Path(place, "modules"))},
                capture_output=True,
                encoding="utf-8",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PublishError(f"{what} did not finish within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise PublishError(f"{what} fails, so the model must not go out:\n{tail}")
    return done.stdout
