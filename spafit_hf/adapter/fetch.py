"""Download an adapter from the Hub: the files that make one, at one commit, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spafit_hf.adapter.folder import AdapterError
from spafit_hf.hub import HubError, pull_adapter


@dataclass(frozen=True)
class FetchedAdapter:
    """Where an adapter's files lie in the Hub's cache, and the commit that they are from."""

    folder: Path
    repo_id: str
    commit: str


def fetch_adapter(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> FetchedAdapter:
    """Download an adapter's files into the Hub's cache, unless they are there; see `spafit_hf.hub.pull_adapter`.

    Args:
        repo_id: "user/name".
        revision: branch, tag or commit; the default branch where it is None.
        token: for a private repository; by default the stored one.
        cache_dir: by default the Hub's own cache.

    Raises:
        AdapterError: if the repository, revision or a file is missing, not accessible, or too large.
    """
    try:
        done = pull_adapter(repo_id, revision=revision, token=token, cache_dir=cache_dir)
    except HubError as error:
        raise AdapterError(f"{repo_id} is no folder here. {error}") from error
    return FetchedAdapter(done.folder, done.repo_id, done.commit)
