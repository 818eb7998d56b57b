"""Contents in and out: resolve (the Hub), LFS batches (the Hub), and the storage they point at (another origin)."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from hub.accounts import must_write
from hub.api import Route
from hub.wire import Refused, Reply, Request

if TYPE_CHECKING:
    from hub.server import HubServer

PREFIX = r"^/(?:(?P<plural>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)"
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
STORAGE_ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def resolve(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    """HEAD and GET of a file: small ones answer here, those in LFS with a redirect to the storage."""
    kind = found["plural"].removesuffix("s") or "model"
    repo = hub.readable(kind, found["id"], request.account, contents=True)
    commit = repo.at(found["rev"])
    entry = commit.tree.get(found["path"])
    if entry is None:
        raise Refused(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit.oid})
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.etag}"', "Accept-Ranges": "bytes"}
    if not entry.lfs:
        return ranged(request, hub.store.get(entry.sha256), headers)
    location = f"{hub.storage}/lfs/{entry.sha256}?signature=made-up"
    headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size), "Location": location}
    return Reply(302, b"", headers | hub.xet_headers(repo, commit, entry))


def ranged(request: Request, content: bytes, headers: dict[str, str]) -> Reply:
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if asked is None:
        return Reply(200, content, headers)
    first, last = int(asked[1]), int(asked[2]) if asked[2] else len(content) - 1
    if first >= len(content):
        return Reply(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
    last = min(last, len(content) - 1)
    return Reply(206, content[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"})


def batch(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    """What of the named contents is missing, and where to put it. Above `hub.part_bytes`, in parts."""
    kind = found["plural"].removesuffix("s") or "model"
    repo = hub.readable(kind, found["id"], request.account)
    wanted = request.json()
    # Without a ref it is for a pull request, which anybody who is logged in may open.
    must_write(request.account, repo.namespace if "ref" in wanted or request.account is None else request.account.name)
    objects = []
    for item in wanted["objects"]:
        oid, size = item["oid"], item["size"]
        answer: dict[str, object] = {"oid": oid, "size": size}
        if not hub.store.has(oid):
            upload: dict[str, object] = {"href": f"{hub.storage}/put/{oid}"}
            if size > hub.part_bytes:
                parts = -(-size // hub.part_bytes)
                urls = {f"{n:05d}": f"{hub.storage}/part/{oid}/{n}" for n in range(1, parts + 1)}
                upload = {
                    "href": f"{hub.storage}/complete/{oid}",
                    "header": {"chunk_size": str(hub.part_bytes), **urls},
                }
            verify = {"href": f"{hub.endpoint}/{found['id']}.git/info/lfs/verify"}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    return Reply.json({"transfer": "basic", "objects": objects})


def verify(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    wanted = request.json()
    if not hub.store.has(wanted["oid"]) or len(hub.store.get(wanted["oid"])) != wanted["size"]:
        raise Refused(404, "The uploaded content does not match its size")
    return Reply.json({})


# the storage


def put(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    if hashlib.sha256(request.body).hexdigest() != found["oid"]:
        raise Refused(400, "Content does not match its sha256")
    hub.store.put(request.body)
    return Reply(200, b"", {"ETag": f'"{found["oid"]}"'})


def put_part(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    hub.parts[found["oid"], int(found["n"])] = request.body
    return Reply(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


def complete(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    numbers = [part["partNumber"] for part in request.json()["parts"]]
    content = b"".join(hub.parts.pop((found["oid"], n)) for n in numbers)
    if hashlib.sha256(content).hexdigest() != found["oid"]:
        raise Refused(400, "Content does not match its sha256")
    hub.store.put(content)
    return Reply.json({})


def download(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    if not hub.store.has(found["oid"]):
        raise Refused(404, "No such content")
    return ranged(request, hub.store.get(found["oid"]), {"ETag": f'"{found["oid"]}"', "Accept-Ranges": "bytes"})


for method in ("GET", "HEAD"):
    ROUTES.append((method, re.compile(PREFIX + r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)$"), resolve))
    STORAGE_ROUTES.append((method, re.compile(r"^/lfs/(?P<oid>[0-9a-f]{64})$"), download))
ROUTES.append(("POST", re.compile(PREFIX + r"\.git/info/lfs/objects/batch$"), batch))
ROUTES.append(("POST", re.compile(PREFIX + r"\.git/info/lfs/verify$"), verify))
STORAGE_ROUTES.append(("PUT", re.compile(r"^/put/(?P<oid>[0-9a-f]{64})$"), put))
STORAGE_ROUTES.append(("PUT", re.compile(r"^/part/(?P<oid>[0-9a-f]{64})/(?P<n>\d+)$"), put_part))
STORAGE_ROUTES.append(("POST", re.compile(r"^/complete/(?P<oid>[0-9a-f]{64})$"), complete))
