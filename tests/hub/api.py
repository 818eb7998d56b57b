"""The routes under /api, and the commit among them. Each takes the hub, the request and what its pattern matched."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hub.accounts import must_write
from hub.metadata import validate
from hub.store import LFS_ENDINGS, Commit, Entry, PullRequest, Repo
from hub.wire import Refused, Reply, Request

if TYPE_CHECKING:
    from hub.server import HubServer

Route = Callable[["HubServer", Request, dict[str, str]], Reply]
REPO = r"^/api/(?P<kind>model|dataset|space)s/(?P<id>[^/]+/[^/]+)"
LFS_BYTES = 10_000_000

ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    def register(function: Route) -> Route:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


def changed(hub: HubServer, request: Request, found: dict[str, str]) -> Repo:
    """The repo, for somebody who may change it."""
    repo = hub.readable(found["kind"], found["id"], request.account)
    must_write(request.account, repo.namespace)
    return repo


# accounts and repos


@route("GET", r"^/api/whoami-v2$")
def whoami(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    if request.account is None:
        raise Refused(401, "Invalid username or password.")
    return Reply.json(request.account.whoami())


@route("POST", r"^/api/validate-yaml$")
def validate_yaml(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    errors, warnings = validate(request.json()["content"])
    body = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
    return Reply.json(body, 400 if errors else 200)


@route("POST", r"^/api/repos/create$")
def create_repo(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    wanted = request.json()
    kind = wanted.get("type") or "model"
    namespace = wanted.get("organization") or (request.account.name if request.account else "")
    must_write(request.account, namespace)
    repo_id = f"{namespace}/{wanted['name']}"
    url = hub.page(kind, repo_id)
    if (kind, repo_id) in hub.store.repos:
        raise Refused(
            409, "You already created this repo", body={"error": "You already created this repo", "url": url}
        )
    hub.store.create(kind, repo_id, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
    return Reply.json({"url": url, "id": repo_id})


@route("DELETE", r"^/api/repos/delete$")
def delete_repo(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    wanted = request.json()
    namespace = wanted.get("organization") or (request.account.name if request.account else "")
    kind, repo_id = wanted.get("type") or "model", f"{namespace}/{wanted['name']}"
    hub.readable(kind, repo_id, request.account)
    must_write(request.account, namespace)
    del hub.store.repos[kind, repo_id]
    return Reply.json({})


@route("POST", r"^/api/repos/move$")
def move_repo(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    wanted = request.json()
    kind = wanted.get("type") or "model"
    must_write(request.account, hub.readable(kind, wanted["fromRepo"], request.account).namespace)
    hub.store.move(kind, wanted["fromRepo"], wanted["toRepo"])
    return Reply.json({})


@route("PUT", REPO + r"/settings$")
def settings(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo, wanted = changed(hub, request, found), request.json()
    if "private" in wanted or "visibility" in wanted:
        repo.private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
    if "gated" in wanted:
        repo.gated = wanted["gated"] or ""
    return Reply.json({})


@route("GET", REPO + r"(/revision/(?P<rev>[^/]+))?$")
def info(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = hub.readable(found["kind"], found["id"], request.account)
    commit = repo.at(found["rev"] or "main")
    card = hub.card_data(commit)
    siblings = []
    for path, entry in sorted(commit.tree.items()):
        sibling: dict[str, object] = {"rfilename": path}
        if request.flag("blobs"):
            listed = entry.listed(path)
            sibling |= {"size": entry.size, "blobId": entry.oid}
            sibling |= {"lfs": {"sha256": entry.sha256, **listed["lfs"]}} if entry.lfs else {}  # type: ignore[dict-item]
        siblings.append(sibling)
    body = {
        "_id": commit.oid[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": commit.oid,
        "lastModified": commit.date.isoformat().replace("+00:00", "Z"),
        "private": repo.private,
        "gated": repo.gated or False,
        "disabled": False,
        "tags": card.get("tags", []) + ([f"license:{card['license']}"] if "license" in card else []),
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
    }
    body |= {"cardData": card} if card else {}
    body |= {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
    return Reply.json(body)


# trees


@route("GET", REPO + r"/tree/(?P<rev>[^/]+)(/(?P<path>.+))?$")
def tree(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = hub.readable(found["kind"], found["id"], request.account)
    commit = repo.at(found["rev"])
    prefix = f"{found['path'].rstrip('/')}/" if found["path"] else ""
    files = {path: entry for path, entry in sorted(commit.tree.items()) if path.startswith(prefix)}
    if prefix and not files:
        raise Refused(404, f"{found['path']} does not exist on {found['rev']}", "EntryNotFound")
    listed: dict[str, dict[str, object]] = {}
    for path, entry in files.items():
        folders = path[len(prefix) :].split("/")[:-1]
        for depth in range(len(folders) if request.flag("recursive") else min(1, len(folders))):
            folder = prefix + "/".join(folders[: depth + 1])
            listed[folder] = {"type": "directory", "path": folder, "oid": commit.oid, "size": 0}
        if request.flag("recursive") or not folders:
            listed[path] = hub.listed(entry, path)
    items = list(listed.values())
    start = int(request.query.get("cursor", ["0"])[0])
    page = items[start : start + hub.page_size]
    headers = {}
    if start + hub.page_size < len(items):
        recursive = f"&recursive={request.query['recursive'][0]}" if "recursive" in request.query else ""
        headers["Link"] = f'<{hub.endpoint}{request.path}?cursor={start + hub.page_size}{recursive}>; rel="next"'
    return Reply.json(page, **headers)


@route("POST", REPO + r"/paths-info/(?P<rev>[^/]+)$")
def paths_info(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    commit = hub.readable(found["kind"], found["id"], request.account).at(found["rev"])
    form = request.json() if "json" in request.headers.get("content-type", "") else request.form()
    items: list[dict[str, object]] = []
    for path in form.get("paths", []):
        if path in commit.tree:
            items.append(hub.listed(commit.tree[path], path))
        elif any(name.startswith(f"{path}/") for name in commit.tree):
            items.append({"type": "directory", "path": path, "oid": commit.oid, "size": 0})
    return Reply.json(items)


@route("GET", REPO + r"/commits/(?P<rev>[^/]+)$")
def commits(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = hub.readable(found["kind"], found["id"], request.account)
    return Reply.json([printed(commit) for commit in repo.history(found["rev"])])


def printed(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.description,
        "authors": [{"user": commit.author}],
        "date": commit.date.isoformat().replace("+00:00", "Z"),
    }


# committing


@route("POST", REPO + r"/preupload/(?P<rev>[^/]+)$")
def preupload(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = hub.readable(found["kind"], found["id"], request.account)
    if not request.flag("create_pr"):
        must_write(request.account, repo.namespace)
    current = repo.at(found["rev"]).tree
    modes = []
    for file in request.json()["files"]:
        path, entry = file["path"], current.get(file["path"])
        large = path.endswith(LFS_ENDINGS) or file["size"] > LFS_BYTES or b"\0" in base64.b64decode(file["sample"])
        modes.append(
            {
                "path": path,
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                "oid": entry.etag if entry else None,
            }
        )
    return Reply.json({"files": modes})


@route("POST", REPO + r"/commit/(?P<rev>[^/]+)$")
def commit(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = hub.readable(found["kind"], found["id"], request.account)
    opens_pull = request.flag("create_pr")
    if request.account is None or not opens_pull:
        must_write(request.account, repo.namespace)
    assert request.account is not None
    head = repo.at(found["rev"])
    header: dict[str, Any] = {}
    added: dict[str, Entry] = {}
    deleted: list[str] = []
    for line in request.body.splitlines():
        item = json.loads(line)
        key, value = item["key"], item["value"]
        if key == "header":
            header = value
        elif key == "file":
            added[value["path"]] = hub.store.entry(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            if not hub.store.has(value["oid"]):
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            added[value["path"]] = hub.store.entry(hub.store.get(value["oid"]), lfs=True)
        elif key == "deletedFile":
            deleted.append(value["path"])
        elif key == "deletedFolder":
            deleted.append(value["path"].rstrip("/") + "/")
    if header.get("parentCommit", head.oid) != head.oid:
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    if "README.md" in added:
        errors, _ = validate(hub.store.get(added["README.md"].sha256).decode())
        if errors:
            raise Refused(400, "Invalid metadata in README.md: " + "; ".join(errors))
    if not added and not deleted:
        raise Refused(400, "Empty commit")
    ref, extra = found["rev"], {}
    if opens_pull:
        pull = open_pull(hub, repo, header["summary"], header.get("description", ""), request.account.name, "open")
        ref, extra = pull.ref, {"pullRequestUrl": f"{hub.page(repo.kind, repo.id)}/discussions/{pull.num}"}
    elif ref not in repo.refs:
        raise Refused(400, f"{ref} is not a branch")
    done = hub.store.commit(
        repo, ref, added, deleted, header["summary"], header.get("description", ""), request.account.name
    )
    url = f"{hub.page(repo.kind, repo.id)}/commit/{done.oid}"
    return Reply.json({"success": True, "commitOid": done.oid, "commitUrl": url, "hookOutput": "", **extra})


# branches and tags


@route("GET", REPO + r"/refs$")
def refs(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = hub.readable(found["kind"], found["id"], request.account)
    body: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": []}
    if request.flag("include_prs"):
        body["pullRequests"] = []
    for name, oid in repo.refs.items():
        if name.startswith("refs/pr/"):
            if request.flag("include_prs"):
                body["pullRequests"].append({"name": name.removeprefix("refs/"), "ref": name, "targetCommit": oid})
        elif name.startswith("refs/tags/"):
            body["tags"].append({"name": name.removeprefix("refs/tags/"), "ref": name, "targetCommit": oid})
        else:
            body["branches"].append({"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid})
    return Reply.json(body)


@route("POST", REPO + r"/branch/(?P<name>[^/]+)$")
def make_branch(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = changed(hub, request, found)
    if found["name"] in repo.refs:
        raise Refused(409, f"Reference already exists: {found['name']}")
    repo.refs[found["name"]] = repo.at(request.json().get("startingPoint") or "main").oid
    return Reply.json({})


@route("DELETE", REPO + r"/branch/(?P<name>[^/]+)$")
def drop_branch(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = changed(hub, request, found)
    if repo.refs.pop(found["name"], None) is None:
        raise Refused(404, f"Invalid rev id: {found['name']}", "RevisionNotFound")
    return Reply.json({})


@route("POST", REPO + r"/tag/(?P<rev>[^/]+)$")
def make_tag(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = changed(hub, request, found)
    ref = f"refs/tags/{request.json()['tag']}"
    if ref in repo.refs:
        raise Refused(409, f"Reference already exists: {ref}")
    repo.refs[ref] = repo.at(found["rev"]).oid
    return Reply.json({})


@route("DELETE", REPO + r"/tag/(?P<name>[^/]+)$")
def drop_tag(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = changed(hub, request, found)
    if repo.refs.pop(f"refs/tags/{found['name']}", None) is None:
        raise Refused(404, f"Invalid rev id: {found['name']}", "RevisionNotFound")
    return Reply.json({})


# pull requests


def open_pull(hub: HubServer, repo: Repo, title: str, description: str, author: str, status: str) -> PullRequest:
    pull = PullRequest(len(repo.pulls) + 1, title, description, author, status, "main", hub.store.now())
    repo.pulls[pull.num] = pull
    repo.refs[pull.ref] = repo.at("main").oid
    return pull


@route("POST", REPO + r"/discussions$")
def open_discussion(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = hub.readable(found["kind"], found["id"], request.account)
    if request.account is None:
        raise Refused(401, "Invalid username or password.")
    wanted = request.json()
    pull = open_pull(hub, repo, wanted["title"], wanted.get("description", ""), request.account.name, "draft")
    return Reply.json({"num": pull.num, "pullRequest": bool(wanted.get("pullRequest"))})


def pull_of(repo: Repo, num: str) -> PullRequest:
    if not num.isdigit() or int(num) not in repo.pulls:
        raise Refused(404, f"Discussion {num} not found")
    return repo.pulls[int(num)]


@route("GET", REPO + r"/discussions/(?P<num>\d+)$")
def discussion(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = hub.readable(found["kind"], found["id"], request.account)
    pull = pull_of(repo, found["num"])
    created = pull.created.isoformat().replace("+00:00", "Z")
    return Reply.json(
        {
            "title": pull.title,
            "num": pull.num,
            "author": {"name": pull.author},
            "createdAt": created,
            "status": pull.status,
            "isPullRequest": True,
            "events": [
                {
                    "id": f"{pull.num:024x}",
                    "type": "comment",
                    "createdAt": created,
                    "author": {"name": pull.author},
                    "data": {"edited": False, "hidden": False, "latest": {"raw": pull.description}},
                }
            ],
            "repo": {"name": repo.id, "type": repo.kind},
            "changes": {"base": f"refs/heads/{pull.base}"},
            "filesWithConflicts": [],
            "diff": "",
        }
    )


@route("POST", REPO + r"/discussions/(?P<num>\d+)/(?P<what>merge|status|comment)$")
def change_discussion(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = changed(hub, request, found)
    pull = pull_of(repo, found["num"])
    if found["what"] == "status":
        pull.status = request.json()["status"]
    elif found["what"] == "merge":
        repo.refs[pull.base] = repo.refs[pull.ref]
        pull.status = "merged"
    event = {
        "id": f"{pull.num:024x}",
        "type": "status-change",
        "createdAt": hub.store.now().isoformat().replace("+00:00", "Z"),
        "author": {"name": pull.author},
        "data": {"status": pull.status},
    }
    return Reply.json({"newStatus": event, "newMessage": event})
