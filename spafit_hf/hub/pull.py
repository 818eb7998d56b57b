"""A repo -> a folder: only files that an adapter has, at one commit, and no more bytes than allowed."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError, RevisionResolutionError
from huggingface_hub.utils import tqdm

from spafit_hf.hub.errors import FAILURES, HubError, explain, is_passing, status_of
from spafit_hf.hub.files import ABOUT_FILES, ADAPTER_FILES, PROCESSOR_FILES
from spafit_hf.hub.push import _api
from spafit_hf.names import CONFIG_FILE, WEIGHTS_FILE

logger = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
PULLED = (*ADAPTER_FILES, *ABOUT_FILES, *PROCESSOR_FILES)
MAX_BYTES = 2 * 2**30
"""Of all files together. The largest adapter of the paper's methods on BERT-large has 50 MB."""


@dataclass(frozen=True)
class Pulled:
    """Where an adapter's files lie, and which commit they are of."""

    folder: Path
    repo_id: str
    revision: str
    """As it was asked for."""
    commit: str
    """What that was at the time: 40 hexadecimal digits."""
    files: tuple[str, ...]


def pull_adapter(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    folder: str | os.PathLike[str] | None = None,
    cache_dir: str | Path | None = None,
    max_bytes: int = MAX_BYTES,
) -> Pulled:
    """Download an adapter from the Hub, into the Hub's cache or a folder. Nothing is loaded or run.

    A branch or tag is resolved to its commit first, and all files are of that commit. What the cache holds is not
    downloaded again; offline, or when the Hub is down, the cache alone is used. The files are a stranger's:
    `verify_adapter` and `load_adapter` check them.

    Args:
        repo_id: "user/name".
        revision: branch, tag or commit; the default branch where it is None.
        token: for a private repo; by default the one that `hf auth login` stored. False for none.
        folder: copy the files here as well. It must be empty or not exist.
        cache_dir: by default the Hub's own cache.
        max_bytes: of all files together; a larger adapter is refused before a byte of it is downloaded, and one that
            sends more than it declared is ended at twice that.

    Raises:
        HubError: if the repo, the revision or a file is missing, not accessible, or too large; with what to do.
    """
    api = _api(token)
    target = None if folder is None else Path(folder)
    if target is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise HubError(f"{target} exists and is not an empty folder; choose another, or empty it first.")
    try:
        resolved = api.resolve_revision(repo_id, revision=revision, cache_dir=cache_dir)
        if not COMMIT.fullmatch(resolved.resolved):
            raise HubError(f"the Hub names no commit for {repo_id}; it cannot be pulled safely.")
        sizes = None if constants.HF_HUB_OFFLINE else _sizes(api, repo_id, resolved.resolved)
        names = PULLED if sizes is None else _wanted(repo_id, sizes, max_bytes)
        cached = snapshot_download(
            repo_id,
            revision=resolved,
            allow_patterns=list(names),
            cache_dir=cache_dir,
            token=token,
            local_files_only=sizes is None,
            tqdm_class=_counting(repo_id, max_bytes),
        )
    except HubError:
        raise
    except RevisionResolutionError as error:
        away = f"the Hub at {constants.ENDPOINT} cannot be reached (or HF_HUB_OFFLINE is set)."
        if status_of(error) is not None:
            away = explain(error, repo_id, revision=revision)
        raise HubError(f"{repo_id} is not in the cache, and {away}") from error
    except (LocalEntryNotFoundError, IncompleteSnapshotError) as error:
        raise HubError(f"the cache holds only part of {repo_id}; pull it once with a connection.") from error
    except FAILURES as error:
        raise HubError(f"Pulling {repo_id} failed: {explain(error, repo_id, revision=revision)}") from error
    there = tuple(name for name in PULLED if Path(cached, name).is_file())
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in there:
            raise HubError(f"the cache holds no {name} of {repo_id}; pull it once with a connection.")
    if target is not None:
        _copy(Path(cached), there, target)
    done = Pulled(target or Path(cached), repo_id, revision or constants.DEFAULT_REVISION, resolved.resolved, there)
    logger.info("Pulled %s at %s into %s.", repo_id, done.commit, done.folder)
    return done


def _counting(repo_id: str, max_bytes: int) -> type[tqdm]:
    """The Hub's own progress bar, which ends a download of far more bytes than were declared and are allowed.

    Twice as many as that: xet sends a little more than a file has, and what is sent again is counted again.
    """

    class Counting(tqdm):
        taken = 0.0  # tqdm's own count stands still where no bar is shown

        def update(self, n: float | None = 1) -> bool | None:
            self.taken += n or 0
            if self.taken > 2 * max_bytes:
                raise HubError(
                    f"{repo_id} sends more bytes than it declares, and more than twice the {max_bytes:,} that are "
                    "pulled at most; the download was ended."
                )
            return super().update(n)

    return Counting


def _copy(cached: Path, names: tuple[str, ...], target: Path) -> None:
    """Files of the cache, which are links there, as a folder that appears whole or not at all; in an empty one, which
    may be "." or a link and stays what it is, the weights come last."""
    there = target.exists()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pulling-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            for name in names:
                shutil.copyfile(cached / name, made / name)
            if there:
                for name in sorted(names, key=WEIGHTS_FILE.__eq__):
                    shutil.move(made / name, target / name)
            else:
                made.rename(target)
    except OSError as error:
        for name in names if there else ():
            (target / name).unlink(missing_ok=True)
        raise HubError(f"{target} cannot be written: {error.strerror}. Nothing is left there; try again.") from error


def _sizes(api: HfApi, repo_id: str, commit: str) -> dict[str, int] | None:
    """Bytes of each file in the repo; None where the Hub is away and the cache is all there is."""
    try:
        info = api.model_info(repo_id, revision=commit, files_metadata=True)
    except FAILURES as error:
        if is_passing(error):
            logger.warning("The Hub cannot be reached; looking for %s in the cache.", repo_id)
            return None
        raise
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def _wanted(repo_id: str, sizes: dict[str, int], max_bytes: int) -> tuple[str, ...]:
    """The files to download: those an adapter has, if they are all there and not too large."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in sizes:
            pickles = sorted(path for path in sizes if path.endswith((".bin", ".pt", ".pth", ".pkl")))
            found = f" {pickles[0]} is a pickle, which can run code and is never pulled." if pickles else ""
            raise HubError(f"{repo_id} has no {name}, so it is no adapter that can be read.{found}")
    names = tuple(name for name in PULLED if name in sizes)
    total = sum(sizes[name] for name in names)
    if total > max_bytes:
        raise HubError(
            f"{repo_id} has {total:,} bytes; more than {max_bytes:,} are not pulled. If that is right, allow it: "
            f"max_bytes={total}."
        )
    return names
