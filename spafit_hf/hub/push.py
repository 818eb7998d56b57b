"""A folder -> a repo: one commit, whatever happens on the way.

    parcel -> full name -> create_repo -> branch -> upload (what is not there yet) -> commit on the head that was seen
                                                                                      |
                                                    no answer: did it arrive? compare the repo's files, then try again

huggingface_hub retries uploads by itself, but neither `create_repo` nor a single commit; and where it does retry a
commit (its upload in many commits), one whose answer was lost is made twice.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants, get_token

from spafit_hf.hub.errors import FAILURES, HubError, explain, is_passing, status_of
from spafit_hf.hub.files import Parcel, parcel, sent
from spafit_hf.hub.retry import Patience, patiently
from spafit_hf.names import __version__

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

PULL_REF = "refs/pr/"

#: Weights of the other kind in a repo: transformers would load these and not what is pushed.
OTHER_KIND = {
    "adapter": ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
    "model": ("adapter_config.json",),
}


@dataclass(frozen=True)
class Pushed:
    """What became of a push."""

    repo_id: str
    commit: str
    """The commit that holds the files now, 40 hexadecimal digits."""
    url: str
    """Of the repo at the branch, or of the pull request."""
    files: tuple[str, ...]
    """Names of the files that it holds."""
    revision: str
    """Branch, or "refs/pr/N"."""
    changed: bool
    """False where the repo held the same files already and no commit was made."""
    message: str = ""
    pr_url: str | None = None

    @property
    def commit_info(self) -> CommitInfo:
        """The same, as huggingface_hub's own functions return it."""
        url = f"{constants.ENDPOINT}/{self.repo_id}/commit/{self.commit}"
        return CommitInfo(url, self.message, "", self.commit, pr_url=self.pr_url)


def push_adapter(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    description: str = "",
    path_in_repo: str = "",
    also: Sequence[str] = (),
    patience: Patience | None = None,
) -> Pushed:
    """Push the folder of an adapter (or of a fully fine-tuned model) to the Hub, in one commit.

    Only files that belong to one are pushed, by name: weights, configurations, card, facts, curve, tokenizer. Called
    again with the same folder it makes no second commit; after a push that was cut it sends only what is missing.

    Args:
        folder: what `SpafitTrainer.save_model` or `save_adapter` wrote.
        repo_id: "user/name", or "name" in the user's own namespace. Made if it is not there.
        token: with write permission; by default the one that `hf auth login` stored.
        private: whether a repo that is made is private; None leaves it to the account's default.
        revision: branch, made from the default one if it is not there; or "refs/pr/N", to add to a pull request.
        create_pr: open a pull request instead of committing to the default branch.
        message, description: of the commit.
        path_in_repo: folder in the repo; its root by default.
        also: names of further files in the folder to push, such as LICENSE.
        patience: how long to try when the Hub does not answer; six tries over half a minute by default.

    Returns:
        Where the files are now.

    Raises:
        HubError: with one sentence on what to do. What is in the folder is untouched in any case.
    """
    waiting = Patience() if patience is None else patience
    found = parcel(folder, also=also, tokens=[token] if token else ())
    if create_pr and revision not in (None, constants.DEFAULT_REVISION):
        raise HubError(f"a pull request goes to the default branch; drop revision={revision!r} or create_pr.")
    api = _api(token)
    push = _Push(
        api, found, sent(found), repo_id, revision or constants.DEFAULT_REVISION, path_in_repo.strip("/"), waiting
    )
    text = message or f"Upload {found.kind} with spafit-hf"
    try:
        push.repo_id = _full_repo_id(api, repo_id, waiting)
        push.make_repo(private, must_write=not create_pr)
        if push.revision != constants.DEFAULT_REVISION and not push.revision.startswith(PULL_REF):
            push.make_branch()
        done = push.pull_request(text, description) if create_pr else push.commit(text, description)
    except HubError:
        raise
    except FAILURES as error:
        again = f"spafit push {found.folder} {push.repo_id}"
        why = explain(error, push.repo_id, revision=push.revision, anonymous=not token and get_token() is None)
        raise HubError(
            f"Pushing {found.folder} failed: {why} "
            f"Nothing is lost: the {found.kind} is in {found.folder}; push it later with `{again}`."
        ) from error
    logger.info("%s %s to %s.", "Pushed" if done.changed else "Nothing new to push from", found.folder, done.url)
    return done


def full_repo_id(repo_id: str, *, token: str | None = None, patience: Patience | None = None) -> str:
    """The repo that `push_adapter` pushes to, as "user/name"; for a name alone, the Hub is asked whose token it is.

    Args:
        repo_id: "user/name", or "name" in the user's own namespace.
        token, patience: as for `push_adapter`.

    Raises:
        HubError: if the Hub does not say whose token it is, or there is none; with what to do.
    """
    try:
        return _full_repo_id(_api(token), repo_id, Patience() if patience is None else patience)
    except FAILURES as error:
        raise HubError(f"Pushing to {repo_id} failed: {explain(error, repo_id)} Nothing was changed.") from error


def _full_repo_id(api: HfApi, repo_id: str, patience: Patience) -> str:
    if "/" in repo_id:
        return repo_id
    # From the cache where it was asked before: the Hub answers this question only so often.
    user = patiently(lambda: api.whoami(cache=True), "Looking up the user", patience)["name"]
    return f"{user}/{repo_id}"


def _api(token: str | None) -> HfApi:
    return HfApi(token=token, library_name="spafit-hf", library_version=__version__)


class _Push:
    """One push on its way: the repo's full name and its head become known as it goes."""

    def __init__(
        self,
        api: HfApi,
        found: Parcel,
        contents: dict[str, Path | bytes],
        repo_id: str,
        revision: str,
        path: str,
        patience: Patience,
    ) -> None:
        self.api = api
        self.kind = found.kind
        self.files = {f"{path}/{name}" if path else name: content for name, content in contents.items()}
        self.repo_id = repo_id
        self.revision = revision
        self.path = path
        self.patience = patience

    def _patiently(self, function: Callable[[], Result], doing: str) -> Result:
        return patiently(function, doing, self.patience)

    # ---- repo and branch ----

    def make_repo(self, private: bool | None, *, must_write: bool) -> None:
        """The repo, made if it is not there. For a pull request it has to be: one proposes to what exists."""
        if not must_write:
            self._patiently(lambda: self.api.repo_info(self.repo_id), f"Looking up {self.repo_id}")
            return
        url = self._patiently(
            lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True), f"Creating {self.repo_id}"
        )
        self.repo_id = url.repo_id

    def make_branch(self) -> None:
        def make() -> None:
            self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)

        self._patiently(make, f"Creating branch {self.revision}")

    def head(self, revision: str) -> str | None:
        """The commit that a branch is at; refuses a repo that holds the other kind of weights."""
        info = self._patiently(
            lambda: self.api.model_info(self.repo_id, revision=revision), f"Looking up {self.repo_id}"
        )
        there = {file.rfilename for file in info.siblings or []}
        if not self.path:
            for name in OTHER_KIND[self.kind]:
                if name in there:
                    raise HubError(
                        f"{self.repo_id} holds {name}, so transformers would not load the {self.kind} that is pushed; "
                        "push it to a repository of its own."
                    )
        return info.sha

    # ---- upload and commit ----

    def commit(self, message: str, description: str) -> Pushed:
        head = start = self.head(self.revision)
        waits = self.patience.waits()
        while True:
            files = self._operations()
            try:
                info = self._send(files, message, description, head, create_pr=False)
                return self._pushed(info.oid, self.revision, message, changed=info.oid != head)
            except FAILURES as error:
                moved = status_of(error) == 412  # another user committed in between, perhaps this very commit
                planned = next(waits, None)
                if planned is None or not (moved or _worth_another_try(error)):
                    raise
                self.patience.wait(planned, error, "The commit")
            head = self.head(self.revision)
            if head != start and head is not None and self._holds(head):
                return self._pushed(head, self.revision, message, changed=True)

    def pull_request(self, message: str, description: str) -> Pushed:
        head = self.head(constants.DEFAULT_REVISION)
        before = self._pull_refs()
        waits = self.patience.waits()
        while True:
            try:
                info = self._send(self._operations(), message, description, head, create_pr=True)
                if info.pr_url is None or info.pr_revision is None:  # the default branch holds these files already
                    return self._pushed(info.oid, self.revision, message, changed=False)
                return self._pushed(info.oid, info.pr_revision, message, changed=True, pr_url=info.pr_url)
            except FAILURES as error:
                planned = next(waits, None)
                # Where the Hub does not list its pull requests, a second try might open a second one.
                if not _worth_another_try(error) or planned is None or before is None:
                    raise
                self.patience.wait(planned, error, "The pull request")
            for ref, commit in (self._pull_refs() or {}).items():
                if ref not in before and self._holds(commit):
                    number = ref.rsplit("/", 1)[-1]
                    url = f"{constants.ENDPOINT}/{self.repo_id}/discussions/{number}"
                    return self._pushed(commit, ref, message, changed=True, pr_url=url)

    def _send(
        self, files: list[CommitOperationAdd], message: str, description: str, parent: str | None, *, create_pr: bool
    ) -> CommitInfo:
        revision = None if create_pr else self.revision
        return self.api.create_commit(
            self.repo_id,
            files,
            commit_message=message,
            commit_description=description,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent,
        )

    def _operations(self) -> list[CommitOperationAdd]:
        return [CommitOperationAdd(name, content) for name, content in self.files.items()]

    # ---- what has arrived ----

    def _pull_refs(self) -> dict[str, str] | None:
        """Pull requests and the commit each is at; None where the Hub does not list them."""
        try:
            refs = self._patiently(
                lambda: self.api.list_repo_refs(self.repo_id, include_pull_requests=True), f"Looking up {self.repo_id}"
            )
        except KeyError:
            return None
        return {ref.ref: ref.target_commit for ref in refs.pull_requests or []}

    def _holds(self, commit: str) -> bool:
        """Whether a commit has every file as it is sent."""
        infos = self._patiently(
            lambda: self.api.get_paths_info(self.repo_id, list(self.files), revision=commit),
            f"Looking up {self.repo_id}",
        )
        remote = {info.path: info for info in infos}
        for name, content in self.files.items():
            info = remote.get(name)
            lfs = getattr(info, "lfs", None)
            if info is None or (
                lfs.sha256 != _sha256(content) if lfs else getattr(info, "blob_id", None) != _git_oid(content)
            ):
                return False
        return True

    def _pushed(self, commit: str, revision: str, message: str, *, changed: bool, pr_url: str | None = None) -> Pushed:
        page = f"{constants.ENDPOINT}/{self.repo_id}"
        place = page if revision == constants.DEFAULT_REVISION else f"{page}/tree/{revision}"
        return Pushed(self.repo_id, commit, pr_url or place, tuple(self.files), revision, changed, message, pr_url)


def _worth_another_try(error: Exception) -> bool:
    """Whether a request failed for a moment. An upload that failed was tried for up to minutes already."""
    return isinstance(error, (httpx2.HTTPError, json.JSONDecodeError)) and is_passing(error)


def _sha256(content: Path | bytes) -> str:
    digest = hashlib.sha256()
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _git_oid(content: Path | bytes) -> str:
    """What git calls a file's content."""
    content = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
