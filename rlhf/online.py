"""Requests to the Hub, tried again where that can help and explained where they fail, and the cache of what came from it.

Nothing here prints or returns a token: an error of the Hub names its address and its reason only.
"""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

WAITS = (1.0, 2.0, 4.0)  # seconds before each further try
LONGEST_WAIT = 60.0  # seconds, whatever the Hub asks for
TIMEOUT = 60.0  # seconds without a byte after which a request has failed
BUSY = (408, 429, 500, 502, 503, 504)  # answers after which a later try may succeed
REASON_CHARACTERS = 300
# Errors of a folder that takes no writes. EDQUOT, which Windows lacks: the user's share of the disk is full.
REFUSED_WRITES = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR),
    getattr(errno, "EDQUOT", errno.ENOSPC),
)
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
TOKENS = "https://huggingface.co/settings/tokens"


def retrying(call: Callable[[], T], waits: tuple[float, ...] | None = None) -> T:
    """Call a function, again after each wait in seconds where the network or a busy Hub has failed it."""
    limit_silence()
    # The last try is outside of the loop, so that its error is raised as it is.
    for wait in WAITS if waits is None else waits:
        try:
            return call()
        except Exception as error:
            if not is_passing(error):
                raise
            time.sleep(min(LONGEST_WAIT, max(wait, _asked_wait(error))))
    return call()


def is_passing(error: BaseException) -> bool:
    """True for an error that may be gone a moment later: a busy Hub, or a connection that broke."""
    return status_of(error) in BUSY or is_connection_error(error)


def is_connection_error(error: BaseException) -> bool:
    """True where no answer came."""
    from huggingface_hub.errors import HfHubHTTPError

    # The first base is the HTTP library's own error, whichever library that is.
    transport = HfHubHTTPError.__bases__[0]
    return isinstance(error, transport) and not isinstance(error, HfHubHTTPError)


def is_refused_write(error: BaseException) -> bool:
    """True for an error of the disk, which answers of the Hub are not, although they are errors of input and output too."""
    return isinstance(error, OSError) and error.errno in REFUSED_WRITES


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error, or None."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _asked_wait(error: BaseException) -> float:
    """Seconds of the header Retry-After."""
    response = getattr(error, "response", None)
    headers = response.headers if response is not None else {}
    try:
        return float(headers.get("Retry-After", 0))
    except ValueError:  # a date
        return 0.0


def explain(error: BaseException, name: str) -> str:
    """One line on what failed with a repository, and the remedy. name: of the repository."""
    return _explain_kind(error, name) or _explain_answer(error, name)


def _explain_kind(error: BaseException, name: str) -> str:
    """The line for an error whose class says all; "" where only the answer of the Hub says more."""
    from huggingface_hub import errors

    if is_refused_write(error):
        return (
            f"{name}: the cache of the Hub takes no writes ({error}): free some space, or name a folder that can be written "
            "to in HF_HOME"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{name}: HF_HUB_OFFLINE is set, so the Hub is not asked: unset it"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"{name}: there is no token: {LOGIN}"
    if isinstance(error, errors.HFValidationError):
        return f"{name}: not a name that the Hub allows: use letters, digits, - _ . and at most one /, as in me/my-model"
    if isinstance(error, errors.GatedRepoError):
        return f"{name}: a gated repository: accept its terms on its page, then {LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: the repository has no such branch, tag or commit: check the revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name}: no such repository on the Hub, or a private one: check the name, or {LOGIN}"
        )
    return ""


def _explain_answer(error: BaseException, name: str) -> str:
    """The line for an answer of the Hub, or for none."""
    status = status_of(error)
    # Of a repository that is not there for strangers, 401 is "not found", above.
    if status == 401:
        return f"{name}: the Hub does not know this token (401): make one at {TOKENS}, then {LOGIN}"
    if status == 403:
        return (
            f"{name}: this token has no permission for that (403): take one with the right to write, of a member of "
            f"the owner ({TOKENS}), then {LOGIN}"
        )
    if status == 412:
        return f"{name}: somebody else commits at the same time (412): try again"
    if status in BUSY:
        return f"{name}: the Hub is busy or down ({status}), after several tries: try again later"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = reason[:REASON_CHARACTERS]
    if is_connection_error(error):
        return f"{name}: no connection to {endpoint()} ({reason}): check the network, and HF_ENDPOINT if you set it"
    server = getattr(error, "server_message", None)
    return f"{name}: {server or reason}"


def endpoint() -> str:
    """The address of the Hub."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def limit_silence() -> None:
    """Let requests fail where the Hub falls silent. huggingface_hub would wait for ever."""
    from huggingface_hub import get_session

    get_session().timeout = TIMEOUT


def cache_of(repo: str) -> Path:
    """The folder of a model's repository in the local cache, which need not be there."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")


def cached_commit(repo: str, revision: str | None) -> str:
    """The commit that a branch or tag had at the last download, or the commit itself; "" without one.

    revision: None is main, which from_pretrained takes.
    """
    storage = cache_of(repo)
    reference = storage / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text().strip()
    if revision and (storage / "snapshots" / revision).is_dir():
        return revision
    return ""
