"""Requests to the Hub: how long one may take, when it is sent again, and in what words it fails."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from ..core.errors import PublishError
from ..core.secrets import masked

ATTEMPTS = 4
FIRST_WAIT_S = 1.0  # doubles from one attempt to the next
CONNECT_S, READ_S, WRITE_S = 10.0, 35.0, 60.0  # without a byte coming or going
COMMIT_READ_S = 75.0  # the Hub itself gives up a commit after a minute
SILENCES = 2  # requests to one address that may run out of time

_TRANSIENT = (408, 409, 412, 429)  # and every 5xx
_STORAGE_TRANSIENT = (*_TRANSIENT, 403)  # an upload address has run out; the next attempt asks for a fresh one
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
_STORAGE_ADVICE = {
    403: "the Hub's file storage no longer accepts the upload address, which expires: push again",
    413: "the Hub's file storage finds the file too large: save the model in smaller shards (max_shard_size)",
}
T = TypeVar("T")


class SilentHubError(ConnectionError):
    """The Hub took a request and did not answer."""


def persist(action: Callable[[], T], repo_id: str, token: str, *, unsure: bool = True) -> T:
    """Return `action()`, tried again with growing waits while the Hub is only troubled; otherwise PublishError.

    Where it is `unsure` whether a request whose answer was lost was carried out, it is sent again too: not for a pull
    request, which would be opened twice.
    The error is raised outside the handler, so that it carries no context: the original may quote the token.
    """
    waiting = _Waiting()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _limited(waiting):
                return action()
        # the client lets through what it stumbles over in an answer that is not the Hub's: LookupError, TypeError, …
        except (HTTPError, OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as caught:
            error, file = _origin(caught), _file(caught)
            message = _explain(error) + file
            again = _is_transient(error) and (unsure or isinstance(error, HfHubHTTPError))
        if not again or attempt == ATTEMPTS:
            break
        time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
    tried = f" after {attempt} attempts" if attempt > 1 else ""
    text = f"pushing to {repo_id} failed{tried}: {message}. All files go up in one commit, so nothing is half-written "
    raise PublishError(masked(text + "and pushing again is safe.", token))


class _Waiting:
    """Knows which addresses took a request and stayed silent until it ran out of time: they are not asked for ever."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[float, float]] = {}  # by address: when, and the seconds it had
        self.silent: Counter[str] = Counter()

    def before(self, request: Any) -> None:
        """Refuse a request to an address that stayed silent; give a commit more time than others."""
        address = _address(request)
        asked, had = self.asked.pop(address, (math.inf, 0.0))
        self.silent[address] += time.monotonic() - asked >= had
        if self.silent[address] >= SILENCES:
            raise SilentHubError(f"{address} within {had:.0f} s")
        limits = request.extensions.get("timeout", {})
        if "/commit/" in address and limits.get("read") is not None:
            limits["read"] = max(limits["read"], COMMIT_READ_S)
        self.asked[address] = time.monotonic(), limits.get("read") or math.inf

    def after(self, response: Any) -> None:
        """Note that an address answers."""
        self.asked.pop(_address(response.request), None)


def _address(request: Any) -> str:
    return f"{request.method} {urlsplit(str(request.url)).path}"


@contextlib.contextmanager
def _limited(waiting: _Waiting) -> Iterator[None]:
    """Give the Hub client's session time limits, which it has none of, unless the user's own session has some."""
    client = get_session()
    limits, hooks = client.timeout, client.event_hooks
    if limits.read is None:
        client.timeout = (CONNECT_S, max(READ_S, constants.HF_HUB_DOWNLOAD_TIMEOUT), WRITE_S, CONNECT_S)
    ours = {"request": waiting.before, "response": waiting.after}
    client.event_hooks = {event: [*hooks.get(event, ()), hook] for event, hook in ours.items()}
    try:
        yield
    finally:
        client.timeout, client.event_hooks = limits, hooks


def _origin(error: BaseException) -> BaseException:
    """Return the error of a request that the client wrapped in another, else the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HTTPError | SilentHubError):
            return cause
        cause = cause.__cause__
    return error


def _file(error: BaseException) -> str:
    """Return which file was on its way, where the client's error says so."""
    return f", uploading {str(error).split(chr(39))[1]}" if str(error).startswith("Error while uploading '") else ""


def _in_storage(error: HfHubHTTPError) -> bool:
    """Return whether the file storage answered, not the Hub's own interface."""
    path = urlsplit(str(error.response.request.url)).path
    return not path.startswith("/api/") and ".git/info/lfs/" not in path


def _is_transient(error: BaseException) -> bool:
    """Return whether the same request may well succeed a moment later."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status >= 500 or status in (_STORAGE_TRANSIENT if _in_storage(error) else _TRANSIENT)
    if isinstance(error, SilentHubError | OfflineModeIsEnabled):
        return False
    return isinstance(error, HTTPError | ConnectionError | TimeoutError)


def _explain(error: BaseException) -> str:
    """Return in plain words what went wrong and what to do."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to push"
    if isinstance(error, HfHubHTTPError):
        return _explain_status(error)
    if isinstance(error, SilentHubError):
        return f"the Hub does not answer {error}: try again later, or set HF_HUB_DOWNLOAD_TIMEOUT to more seconds"
    if _is_transient(error):
        return f"the connection to the Hub was cut ({type(error).__name__}: {error})"
    if isinstance(error, LookupError | TypeError | AttributeError) or type(error).__name__ == "JSONDecodeError":
        return (
            f"what answered is not the Hub ({type(error).__name__}: {error}): a proxy or a login page may stand in "
            "between; open https://huggingface.co in a browser, or check HF_ENDPOINT and the proxy settings"
        )
    return f"{type(error).__name__}: {error}".rstrip(".")


def _explain_status(error: HfHubHTTPError) -> str:
    status, storage = error.response.status_code, _in_storage(error)
    usual = "the Hub's file storage" if storage else "the Hub"
    advice = (_STORAGE_ADVICE if storage else _ADVICE).get(
        status, f"{usual} is in trouble: try again later" if status >= 500 else f"{usual} refuses what was sent"
    )
    said = f": {error.server_message}" if error.server_message and not storage else ""
    return f"{advice} (it answered {status}{said})"
