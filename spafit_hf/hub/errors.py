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

from spafit_hf.words import SpafitError, last_line

#: Answers after which the same request may succeed a moment later.
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
#: What huggingface_hub stumbles over where an answer is JSON of another shape than the Hub's.
ODD_ANSWERS = (TypeError, LookupError, AttributeError, AssertionError)
#: Everything that a call of huggingface_hub fails with; httpx2's transport errors are no OSError.
FAILURES = (httpx2.HTTPError, RevisionResolutionError, OSError, RuntimeError, ValueError, *ODD_ANSWERS)

NO_TOKEN = "no user is logged in; make a token with write permission at {tokens} and run `hf auth login`."
#: What to do about an error of huggingface_hub; the first that fits.
BY_KIND: dict[type[BaseException], str] = {
    OfflineModeIsEnabled: "HF_HUB_OFFLINE is set; unset it to reach the Hub.",
    HFValidationError: "{repo!r} cannot name a repository: use user/name with letters, digits, '-', '_' and '.'.",
    GatedRepoError: "{repo} is gated; ask for access at {hub}/{repo}, then log in with `hf auth login`.",
    RevisionNotFoundError: "{repo} has no revision {revision!r}; see its branches at {hub}/{repo}/tree/main.",
    RepositoryNotFoundError: "there is no repository {repo} that this token can see; check the name, or log in with "
    "`hf auth login` as a user who may see it.",
    LocalTokenNotFoundError: NO_TOKEN,
    LocalEntryNotFoundError: "{repo} is not in the cache and the Hub at {hub} cannot be reached; check the "
    "connection.",
}
#: What to do about an answer of the Hub.
BY_STATUS = {
    401: "the Hub does not accept this token (401); make one at {tokens} and log in with `hf auth login`.",
    403: "this token may not write to {repo} (403); make one with write permission for it at {tokens}.",
    412: "another user keeps committing to {repo} (412); push again.",
    413: "a file is too large for {hub} (413); push fewer or smaller files.",
    429: "the Hub asks to slow down (429); push again in some minutes.",
}


class HubError(SpafitError):
    """A push or pull that failed, or was refused before it began; the message says what to do about it."""


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it; huggingface_hub wraps what happened in an upload thread."""
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__


def answer(error: BaseException) -> httpx2.Response | None:
    """The Hub's answer that an error is about."""
    return next((one.response for one in chain(error) if isinstance(one, HfHubHTTPError)), None)


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error is about."""
    return None if (found := answer(error)) is None else found.status_code


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


def explain(error: BaseException, repo_id: str, *, revision: str | None = None, anonymous: bool = False) -> str:
    """One sentence for a reader: what happened to a repo, and what to do. `anonymous`: no token was sent."""
    hub = constants.ENDPOINT
    first = next((e for e in chain(error) if isinstance(e, (HfHubHTTPError, OfflineModeIsEnabled))), error)
    status = status_of(error)
    sentence = next((text for kind, text in BY_KIND.items() if isinstance(first, kind)), None)
    if sentence is None:
        sentence = NO_TOKEN if status == 401 and anonymous else BY_STATUS.get(status or 0)
    if sentence is not None:
        return sentence.format(repo=repo_id, revision=revision or "main", hub=hub, tokens=f"{hub}/settings/tokens")
    if status is not None and status >= 500:
        return f"the Hub keeps answering {status}; it may be down, so try again later (https://status.huggingface.co)."
    if isinstance(first, BadRequestError):
        return f"the Hub refused the request: {last_line(first)}"
    if isinstance(first, ODD_ANSWERS):
        what = f"{type(first).__name__}: {last_line(first)}"
        return f"{hub} does not answer as the Hub does ({what}); check that HF_ENDPOINT names a Hub."
    if is_passing(error):
        return f"the Hub at {hub} cannot be reached ({type(error).__name__}); check the connection and try again."
    return last_line(error)
