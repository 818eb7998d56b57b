"""Which version of a base was used, and under which license: what an adapter's repo has to say about it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import get_session

from spafit_hf.hub.errors import FAILURES
from spafit_hf.names import is_remote

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseVersion:
    """A base on the Hub. What could not be found out is None."""

    id: str
    revision: str | None = None
    """Commit, 40 hexadecimal digits."""
    license: str | None = None


def base_version(name_or_path: str | None, *, token: str | None = None) -> BaseVersion | None:
    """What is known of a base by the name it was loaded from; None for a local path, whose name stays here.

    The revision is the one that the cache holds, which is what transformers loaded; only without it is the Hub asked.
    The license is asked of the Hub. Without a connection, what is not known stays None.
    """
    if name_or_path is None or not is_remote(name_or_path):
        return None
    api = HfApi(token=token)
    commit = cached_revision(name_or_path) or _resolved(api, name_or_path, cached=False)
    try:
        tags = api.model_info(name_or_path, timeout=10).tags or []
    except FAILURES as error:
        logger.debug("The license of %s is not known: %s", name_or_path, error)
        tags = []
    licenses = [tag.removeprefix("license:") for tag in tags if tag.startswith("license:")]
    return BaseVersion(name_or_path, commit, next(iter(licenses), None))


def hub_is_away(name_or_path: str) -> bool:
    """Whether a base has to come from the cache: it is a name on the Hub, which does not answer.

    Asked once and for four seconds; the downloads of transformers would try for half a minute, file by file.
    """
    if constants.HF_HUB_OFFLINE or not is_remote(name_or_path):
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=4)
    except (httpx2.HTTPError, OSError):
        return True
    return False


def cached_revision(name_or_path: str) -> str | None:
    """The commit that the cache holds of a repo, 40 hexadecimal digits, or None. Without the network."""
    return _resolved(HfApi(), name_or_path, cached=True) if is_remote(name_or_path) else None


def _resolved(api: HfApi, name: str, *, cached: bool) -> str | None:
    try:
        return api.resolve_revision(name, local_files_only=cached).resolved
    except FAILURES as error:
        logger.debug("The revision of %s is not known: %s", name, error)
        return None
