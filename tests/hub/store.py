"""Repos as the Hub keeps them: contents by hash on disk, trees and commits and refs in memory.

    refs: main, branches, tags, refs/pr/N -> commit -> {path: entry} -> content (by sha256, under blobs/)

A commit replaces a tree whole; nothing is ever rewritten, so an old commit still resolves.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from hub.wire import Refused

GITATTRIBUTES = b"".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n".encode()
    for ending in ("safetensors", "bin", "pt", "pth", "onnx", "msgpack", "h5", "parquet", "zip", "gz", "model", "png")
)
LFS_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".msgpack", ".h5", ".parquet", ".zip", ".gz", ".png")
FIRST_DAY = datetime(2026, 1, 1, tzinfo=timezone.utc)


def git_oid(content: bytes) -> str:
    """What git calls these bytes as a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A file in a tree."""

    sha256: str
    size: int
    oid: str
    """Of the content; of the pointer where the file is in LFS."""
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def listed(self, path: str) -> dict[str, object]:
        """As the tree and paths-info endpoints print it."""
        entry: dict[str, object] = {"type": "file", "path": path, "oid": self.oid, "size": self.size}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 130}
        return entry


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    tree: Mapping[str, Entry]
    title: str
    description: str
    author: str
    date: datetime


@dataclass
class PullRequest:
    num: int
    title: str
    description: str
    author: str
    status: str
    base: str
    created: datetime

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


@dataclass
class Repo:
    kind: str
    id: str
    private: bool = False
    gated: str = ""
    """"" or "auto" or "manual"."""
    granted: set[str] = field(default_factory=set)
    refs: dict[str, str] = field(default_factory=dict)
    """Branches by name, tags as refs/tags/NAME, pull requests as refs/pr/N."""
    commits: dict[str, Commit] = field(default_factory=dict)
    pulls: dict[int, PullRequest] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def at(self, revision: str) -> Commit:
        """The commit behind a branch, a tag, a pull request or a commit id."""
        oid = self.refs.get(revision) or self.refs.get(f"refs/tags/{revision}") or revision
        if oid not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def history(self, revision: str) -> list[Commit]:
        """Newest first."""
        commit: Commit | None = self.at(revision)
        found = []
        while commit is not None:
            found.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return found


class Store:
    """All repos, and all contents by their sha256 under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.lock = threading.RLock()
        self.blobs = folder / "blobs"
        self.blobs.mkdir(parents=True)
        self.repos: dict[tuple[str, str], Repo] = {}
        self._ticks = itertools.count()

    def now(self) -> datetime:
        """Every moment is one second after the last: dates are stable and ordered."""
        return FIRST_DAY + timedelta(seconds=next(self._ticks))

    # contents

    def put(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.blobs / sha256
        if not path.exists():
            partial = path.with_suffix(f".{threading.get_ident()}")
            partial.write_bytes(content)
            partial.replace(path)
        return sha256

    def has(self, sha256: str) -> bool:
        return (self.blobs / sha256).is_file()

    def get(self, sha256: str) -> bytes:
        return (self.blobs / sha256).read_bytes()

    def entry(self, content: bytes, *, lfs: bool) -> Entry:
        sha256 = self.put(content)
        if not lfs:
            return Entry(sha256, len(content), git_oid(content), False)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
        return Entry(sha256, len(content), git_oid(pointer.encode()), True)

    # repos

    def create(self, kind: str, repo_id: str, *, private: bool = False) -> Repo:
        repo = Repo(kind, repo_id, private=private)
        self.repos[kind, repo_id] = repo
        self.commit(
            repo, "main", {".gitattributes": self.entry(GITATTRIBUTES, lfs=False)}, (), "initial commit", "", "system"
        )
        return repo

    def add_files(
        self, repo_id: str, files: Mapping[str, bytes], *, kind: str = "model", revision: str = "main"
    ) -> str:
        """Puts files into a repo from the side, as somebody else would have; returns the commit."""
        with self.lock:
            repo = self.repos.get((kind, repo_id)) or self.create(kind, repo_id)
            entries = {path: self.entry(content, lfs=path.endswith(LFS_ENDINGS)) for path, content in files.items()}
            return self.commit(repo, revision, entries, (), "added from the side", "", repo.namespace).oid

    def commit(
        self,
        repo: Repo,
        ref: str,
        added: Mapping[str, Entry],
        deleted: Iterable[str],
        title: str,
        description: str,
        author: str,
    ) -> Commit:
        """Moves `ref` on by one commit. A deleted path that ends in a slash is a folder."""
        parent = repo.commits[repo.refs[ref]] if ref in repo.refs else None
        tree = dict(parent.tree) if parent else {}
        for path in deleted:
            gone = [name for name in tree if name == path or (path.endswith("/") and name.startswith(path))]
            if not gone:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del tree[name]
        tree.update(added)
        date = self.now()
        identity = repr((repo.id, parent and parent.oid, sorted(tree.items()), title, author, date))
        commit = Commit(
            hashlib.sha1(identity.encode()).hexdigest(), parent and parent.oid, tree, title, description, author, date
        )
        repo.commits[commit.oid] = commit
        repo.refs[ref] = commit.oid
        return commit

    def move(self, kind: str, old: str, new: str) -> None:
        self.repos[kind, new] = replace(self.repos.pop((kind, old)), id=new)

    def files(self, repo_id: str, revision: str = "main", *, kind: str = "model") -> dict[str, bytes]:
        """Everything a revision holds, for a test to look at."""
        with self.lock:
            tree = self.repos[kind, repo_id].at(revision).tree
            return {path: self.get(entry.sha256) for path, entry in tree.items()}
