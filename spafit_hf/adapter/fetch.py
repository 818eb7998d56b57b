"""Download an adapter from the Hub: the files that make one, at one commit, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from spafit_hf.adapter.folder import CONFIG_FILE, SIDECAR_FILE, WEIGHTS_FILE, AdapterError
from spafit_hf.adapter.untrusted import MAX_CONFIG_BYTES, MAX_WEIGHTS_BYTES

#: File -> the most bytes that are downloaded for it.
SIZE_LIMITS = {CONFIG_FILE: MAX_CONFIG_BYTES, SIDECAR_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: MAX_WEIGHTS_BYTES}


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
    """Download an adapter's three files into the Hub's cache, unless they are there.

    A branch or tag is resolved to its commit first, so that all files are of one commit and a later download can ask
    for the same. Offline (`HF_HUB_OFFLINE=1`), what the cache holds for the revision is used.

    Args:
        repo_id: "user/name".
        revision: branch, tag or commit; the default branch where it is None.
        token: for a private repository; by default the stored one.
        cache_dir: by default the Hub's own cache.

    Raises:
        AdapterError: if the repository, revision or a file is missing, not accessible, or larger than its limit.
    """
    where = repo_id if revision is None else f"{repo_id} at {revision}"
    try:
        if constants.HF_HUB_OFFLINE:
            return _from_cache(repo_id, revision, cache_dir)
        info = HfApi().model_info(repo_id, revision=revision, files_metadata=True, token=token)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        commit = info.sha
        if commit is None:
            raise AdapterError(f"the Hub names no commit for {where}; it cannot be downloaded safely.")
        _check_sizes(where, sizes)
        paths = [
            hf_hub_download(repo_id, name, revision=commit, token=token, cache_dir=cache_dir)
            for name in SIZE_LIMITS
            if name in sizes
        ]
        return FetchedAdapter(Path(paths[0]).parent, repo_id, commit)
    except HFValidationError as error:
        raise AdapterError(f"{repo_id!r} is neither a folder here nor a repository's id ('user/name').") from error
    except GatedRepoError as error:
        raise AdapterError(
            f"{where} is gated: ask for access on its page, then log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise AdapterError(f"{repo_id} has no revision {revision!r}; see its branches and tags on the Hub.") from error
    except RepositoryNotFoundError as error:
        raise AdapterError(
            f"{repo_id} is neither a folder here nor a repository that this token can see; check the name, or log in "
            "with `hf auth login`."
        ) from error
    except (EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AdapterError(f"{where} cannot be downloaded: {reason}") from error


def _from_cache(repo_id: str, revision: str | None, cache_dir: str | Path | None) -> FetchedAdapter:
    try:
        path = Path(
            hf_hub_download(repo_id, CONFIG_FILE, revision=revision, cache_dir=cache_dir, local_files_only=True)
        )
    except LocalEntryNotFoundError as error:
        raise AdapterError(
            f"{repo_id} is neither a folder here nor in the Hub's cache, and HF_HUB_OFFLINE is set; unset it to "
            "download."
        ) from error
    return FetchedAdapter(path.parent, repo_id, path.parent.name)


def _check_sizes(where: str, sizes: dict[str, int]) -> None:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in sizes:
            pickles = sorted(file for file in sizes if file.endswith((".bin", ".pt", ".pth", ".pkl")))
            found = f" It has {pickles[0]}, a pickle, which can run code and is never read." if pickles else ""
            raise AdapterError(f"{where} has no {name}, so it is no adapter that can be read.{found}")
    for name, limit in SIZE_LIMITS.items():
        if sizes.get(name, 0) > limit:
            raise AdapterError(f"{name} in {where} has {sizes[name]:,} bytes; more than {limit:,} are not downloaded.")
