"""A folder -> a repo: one commit, whatever happens on the way.

    parcel -> full name -> create_repo -> branch -> upload (what is not there yet) -> commit on the head that was seen
                                                                                      |
                                                    no answer: did it arrive? compare the repo's files, then try again

huggingface_hub retries uploads by itself, but neither `create_repo` nor a single commit; and where it does retry a
commit (its upload in many commits), one whose answer was lost is made twice.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, RepoFile, constants, get_token
from huggingface_hub.utils.sha import git_hash

from spafit_hf.hub.errors import FAILURES, HubError, explain, is_passing, status_of
from spafit_hf.hub.files import parcel, sent
from spafit_hf.hub.retry import Patience, patiently
from spafit_hf.names import SIDECAR_FILE, __version__

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Weights of the other kind in a repo: transformers would load these and not what is pushed.
OTHER_KIND = {
    "adapter": ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
    "model": ("adapter_config.json",),
}
#: What is read with what is pushed where it is in the repo, but was not pushed: another adapter's label names, and
#: weights in one file in place of shards.
LEFT_OVER = {"adapter": SIDECAR_FILE, "model": "model.safetensors"}


@dataclass(frozen=True)
class Pushed:
    """What became of a push."""

    repo_id: str
    commit: str
    """The commit that holds the files now, 40 hexadecimal digits."""
    url: str
    """Of the repo at the branch, or of the pull request."""
    files: tuple[str, ...]
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

    Raises:
        HubError: with one sentence on what to do. What is in the folder is untouched in any case.
    """
    found = parcel(folder, also=also, tokens=[token] if token else ())
    if create_pr and revision not in (None, constants.DEFAULT_REVISION):
        raise HubError(f"a pull request goes to the default branch; drop revision={revision!r} or create_pr.")
    place = path_in_repo.strip("/")
    above = f"{place}/" if place else ""
    files = {f"{above}{name}": content for name, content in sent(found).items()}
    branch, foes = revision or constants.DEFAULT_REVISION, () if place else OTHER_KIND[found.kind]
    left_over = f"{above}{LEFT_OVER[found.kind]}"
    push = _Push(_api(token), repo_id, branch, create_pr, files, foes, left_over, patience or Patience())
    try:
        push.make_place(private)
        done = push.commit(message or f"Upload {found.kind} with spafit-hf", description)
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

    Raises:
        HubError: if the Hub does not say whose token it is, or there is none; with what to do.
    """
    try:
        return _full_repo_id(_api(token), repo_id, patience or Patience())
    except FAILURES as error:
        raise HubError(f"Pushing to {repo_id} failed: {explain(error, repo_id)} Nothing was changed.") from error


def _full_repo_id(api: HfApi, repo_id: str, patience: Patience) -> str:
    if "/" in repo_id:
        return repo_id
    # From the cache where it was asked before: the Hub answers this question only so often.
    user = patiently(lambda: api.whoami(cache=True), "Looking up the user", patience)["name"]
    return f"{user}/{repo_id}"


def _api(token: str | bool | None) -> HfApi:
    return HfApi(token=token, library_name="spafit-hf", library_version=__version__)


@dataclass
class _Push:
    """One push on its way: the repo's full name becomes known as it goes."""

    api: HfApi
    repo_id: str
    revision: str
    create_pr: bool
    files: dict[str, Path | bytes]
    """What is sent under each path in the repo."""
    foes: Sequence[str]
    """Files beside which what is pushed would not be loaded."""
    left_over: str
    """One that belongs to something else where it is not among the files."""
    patience: Patience

    def _patiently(self, function: Callable[[], Result], doing: str = "") -> Result:
        return patiently(function, doing or f"Looking up {self.repo_id}", self.patience)

    def make_place(self, private: bool | None) -> None:
        """The repo and the branch, made where they are not there. A pull request proposes to a repo that is."""
        self.repo_id = _full_repo_id(self.api, self.repo_id, self.patience)
        if self.create_pr:
            self._patiently(lambda: self.api.repo_info(self.repo_id))
            return
        url = self._patiently(
            lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True), f"Creating {self.repo_id}"
        )
        self.repo_id = url.repo_id
        if self.revision != constants.DEFAULT_REVISION and not self.revision.startswith("refs/pr/"):
            self._patiently(
                lambda: self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True),
                f"Creating branch {self.revision}",
            )

    def commit(self, message: str, description: str) -> Pushed:
        """Send the files, again where the Hub did not take them or its answer was lost."""
        head, before = self._refs()
        waits = self.patience.waits()
        while True:
            try:
                info = self.api.create_commit(
                    self.repo_id,
                    [CommitOperationAdd(name, content) for name, content in self.files.items()],
                    commit_message=message,
                    commit_description=description,
                    revision=None if self.create_pr else self.revision,
                    create_pr=self.create_pr,
                    parent_commit=head,
                )
                # No pull request is opened where the default branch holds these files already.
                changed = info.pr_revision is not None if self.create_pr else info.oid != head
                return self._pushed(info.oid, info.pr_revision or self.revision, message, changed=changed)
            except FAILURES as error:
                # 412: another user committed in between, perhaps this very commit
                again = status_of(error) == 412 and not self.create_pr
                # an upload that failed was tried for up to minutes already
                again |= isinstance(error, (httpx2.HTTPError, json.JSONDecodeError)) and is_passing(error)
                planned = next(waits, None) if again else None
                if planned is None:
                    raise
                self.patience.wait(planned, error, "The pull request" if self.create_pr else "The commit")
            head, refs = self._refs()
            for ref, commit in refs.items():
                if commit != before.get(ref) and self._holds(commit):
                    return self._pushed(commit, ref, message, changed=True)

    def _refs(self) -> tuple[str, dict[str, str]]:
        """The commit to build on, and every ref in which the files may arrive with the commit that it is at."""
        info = self._patiently(lambda: self.api.model_info(self.repo_id, revision=self.revision))
        there = {file.rfilename for file in info.siblings or []}
        for name in self.foes:
            if name in there:
                raise HubError(
                    f"{self.repo_id} holds {name}, so transformers would not load what is pushed; push it to a "
                    "repository of its own."
                )
        if self.left_over in there and self.left_over not in self.files:
            raise HubError(
                f"{self.repo_id} holds {self.left_over} of something else, which would be read with what is pushed; "
                "delete it there, or push to a repository of its own."
            )
        head = str(info.sha)
        if not self.create_pr:
            return head, {self.revision: head}
        refs = self._patiently(lambda: self.api.list_repo_refs(self.repo_id, include_pull_requests=True))
        return head, {ref.ref: ref.target_commit for ref in refs.pull_requests or []}

    def _holds(self, commit: str) -> bool:
        """Whether a commit has every file as it is sent."""
        infos = self._patiently(lambda: self.api.get_paths_info(self.repo_id, list(self.files), revision=commit))
        remote = {info.path: info for info in infos if isinstance(info, RepoFile)}
        return remote.keys() == self.files.keys() and all(_is(self.files[name], remote[name]) for name in remote)

    def _pushed(self, commit: str, ref: str, message: str, *, changed: bool) -> Pushed:
        page = f"{constants.ENDPOINT}/{self.repo_id}"
        place = page if ref == constants.DEFAULT_REVISION else f"{page}/tree/{ref}"
        pull = f"{page}/discussions/{ref.rsplit('/', 1)[-1]}" if self.create_pr and changed else None
        return Pushed(self.repo_id, commit, pull or place, tuple(self.files), ref, changed, message, pull)


def _is(content: Path | bytes, there: RepoFile) -> bool:
    """Whether a file on the Hub is what is sent: large ones go by their SHA-256, others by git's hash."""
    if there.lfs:
        return CommitOperationAdd(there.path, content).upload_info.sha256.hex() == there.lfs.sha256
    return git_hash(content if isinstance(content, bytes) else content.read_bytes()) == there.blob_id
