"""What went wrong on the way to the Hub, as one sentence that says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from spafit_hf.words import last_line

#: Answers after which the same request may succeed a moment later.
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
#: Everything that a call of huggingface_hub fails with; httpx2's transport errors are no OSError.
FAILURES = (httpx2.HTTPError, RevisionResolutionError, OSError, RuntimeError, ValueError)


class HubError(ValueError):
    """A push or pull that failed, or was refused before it began; the message says what to do about it."""


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it; huggingface_hub wraps what happened in an upload thread."""
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error is about."""
    for one in chain(error):
        if isinstance(one, HfHubHTTPError):
            return one.response.status_code
    return None


def is_passing(error: BaseException) -> bool:
    """Whether to try again: the Hub is busy or out of reach for a moment, and did not say no."""
    for one in chain(error):
        if isinstance(one, OfflineModeIsEnabled):
            return False
        if isinstance(one, HfHubHTTPError):
            return one.response.status_code in PASSING_STATUS
        # An error page of a proxy in place of JSON is as good as a 503.
        if isinstance(one, (httpx2.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError)):
            return True
    return False


def retry_after(error: BaseException) -> float | None:
    """Seconds that the Hub asks to wait."""
    for one in chain(error):
        if isinstance(one, HfHubHTTPError):
            value = one.response.headers.get("Retry-After", "")
            return float(value) if value.isdigit() else None
    return None


def explain(error: BaseException, repo_id: str, *, revision: str | None = None, anonymous: bool = False) -> str:
    """One sentence for a reader: what happened, and what to do.

    Args:
        error: of huggingface_hub.
        repo_id, revision: what it was about.
        anonymous: whether no token was sent.
    """
    endpoint = constants.ENDPOINT
    tokens = f"{endpoint}/settings/tokens"
    first = next((e for e in chain(error) if isinstance(e, (HfHubHTTPError, OfflineModeIsEnabled))), error)
    status = status_of(error)
    if isinstance(first, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to reach the Hub."
    if isinstance(first, HFValidationError):
        return f"{repo_id!r} cannot name a repository: use user/name with letters, digits, '-', '_' and '.'."
    if isinstance(first, GatedRepoError):
        return f"{repo_id} is gated; ask for access at {endpoint}/{repo_id}, then log in with `hf auth login`."
    if isinstance(first, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision or 'main'!r}; see its branches at {endpoint}/{repo_id}/tree/main."
    if isinstance(first, RepositoryNotFoundError):
        return (
            f"there is no repository {repo_id} that this token can see; check the name, or log in with "
            "`hf auth login` as a user who may see it."
        )
    if isinstance(first, LocalTokenNotFoundError) or (status == 401 and anonymous):
        return f"no user is logged in; make a token with write permission at {tokens} and run `hf auth login`."
    if status == 401:
        return f"the Hub does not accept this token (401); make one at {tokens} and log in with `hf auth login`."
    if status == 403:
        return f"this token may not write to {repo_id} (403); make one with write permission for it at {tokens}."
    if status == 412:
        return f"another user keeps committing to {repo_id} (412); push again."
    if status == 413:
        return f"a file is too large for {endpoint} (413); push fewer or smaller files."
    if status == 429:
        return "the Hub asks to slow down (429); push again in some minutes."
    if status is not None and status >= 500:
        return f"the Hub keeps answering {status}; it may be down, so try again later (https://status.huggingface.co)."
    if isinstance(first, BadRequestError):
        return f"the Hub refused the request: {last_line(first)}"
    if isinstance(first, LocalEntryNotFoundError):
        return f"{repo_id} is not in the cache and the Hub at {endpoint} cannot be reached; check the connection."
    if is_passing(error):
        return f"the Hub at {endpoint} cannot be reached ({type(error).__name__}); check the connection and try again."
    return last_line(error)
