"""Two HTTP servers on loopback around one store: the Hub, and the storage it redirects to."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from hub import api, files, xet
from hub.accounts import Account, Accounts
from hub.faults import Fault, Faults
from hub.metadata import FRONT
from hub.store import Commit, Entry, Repo, Store
from hub.wire import Refused, Reply, Request, segments

DROPPED = -1
ENDLESS = 100
"""Megabytes of an endless reply, or a test that fails would fill the disk."""


@dataclass(frozen=True)
class Seen:
    """A request that came, whatever became of it."""

    method: str
    path: str
    query: str
    status: int
    """`DROPPED` where no reply was sent."""
    sent: int
    """Bytes of its body that arrived."""
    origin: str
    """"hub" or "storage"."""

    def __str__(self) -> str:
        return f"{self.method} {self.path} -> {self.status}"


class HubServer:
    """A context manager: `with HubServer(folder) as hub: ... hub.endpoint ...`.

    Args:
        folder: an empty folder for contents and for what clients sent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder)
        self.accounts = Accounts()
        self.faults = Faults()
        self.xet = xet.XetStore()
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_bytes = 50_000_000
        self.page_size = 1000
        self.seen: list[Seen] = []
        self.sent_to_the_end = False
        """Whether a client has taken all of an endless reply."""
        self.leaks: list[str] = []
        """Requests to the storage that carried a token: there must be none."""
        self._bodies = folder / "bodies"
        self._bodies.mkdir()
        self._count = itertools.count()
        self._hub = Listener(self, api.ROUTES + files.ROUTES + xet.ROUTES, "hub")
        self._storage = Listener(self, files.STORAGE_ROUTES + xet.STORAGE_ROUTES, "storage")
        self.endpoint = f"http://127.0.0.1:{self._hub.server_port}"
        self.storage = f"http://localhost:{self._storage.server_port}"

    def __enter__(self) -> HubServer:
        for listener in (self._hub, self._storage):
            threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for listener in (self._hub, self._storage):
            listener.shutdown()
            listener.server_close()

    # what tests ask

    def token(self, name: str, role: str = "write") -> str:
        return self.accounts.token(name, role)

    def fail(self, kind: str, method: str = "", path: str = "", **how: Any) -> None:
        self.faults.add(Fault(kind, method, path, **how))

    def forget(self) -> None:
        """Empties the record of requests and the list of faults; repos stay."""
        self.seen.clear()
        self.faults.clear()

    def requests(self, method: str = "", path: str = "") -> list[Seen]:
        return [seen for seen in self.seen if method in ("", seen.method) and re.search(path, seen.path)]

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """Newest first, without the one that made the repo."""
        return self.store.repos["model", repo_id].history(revision)[:-1]

    def uploaded(self) -> Iterator[bytes]:
        """Every body that clients sent, and every content the Hub made of them."""
        for folder in (self._bodies, self.store.blobs):
            for path in sorted(folder.iterdir()):
                yield path.read_bytes()

    # what routes ask

    def readable(self, kind: str, repo_id: str, account: Account | None, *, contents: bool = False) -> Repo:
        """The repo, if `account` may know of it, and if `contents`, may read its files."""
        repo = self.store.repos.get((kind, repo_id))
        owner = repo is not None and account is not None and account.name == repo.namespace
        if repo is None or (repo.private and not owner):
            raise Refused(404 if account else 401, "Repository not found", "RepoNotFound")
        if contents and repo.gated and not owner and (account is None or account.name not in repo.granted):
            raise Refused(403 if account else 401, f"Access to model {repo_id} is restricted", "GatedRepo")
        return repo

    def page(self, kind: str, repo_id: str) -> str:
        return f"{self.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"

    def listed(self, entry: Entry, path: str) -> dict[str, object]:
        known = self.xet.by_sha256.get(entry.sha256) if entry.lfs else None
        return entry.listed(path) | ({"xetHash": known} if known else {})

    def xet_headers(self, repo: Repo, commit: Commit, entry: Entry) -> dict[str, str]:
        """What tells a client that it may fetch a file by xet; others follow the redirect."""
        known = self.xet.by_sha256.get(entry.sha256)
        route = f"{self.endpoint}/api/{repo.kind}s/{repo.id}/xet-read-token/{commit.oid}"
        return {"X-Xet-Hash": known, "X-Xet-Refresh-Route": route} if known else {}

    def card_data(self, commit: Commit) -> dict[str, Any]:
        readme = commit.tree.get("README.md")
        front = FRONT.match(self.store.get(readme.sha256).decode()) if readme else None
        return yaml.safe_load(front.group(1)) if front else {}

    def keep(self, body: bytes) -> None:
        if body:
            (self._bodies / f"{next(self._count):06d}").write_bytes(body)


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: HubServer, routes: list[tuple[str, re.Pattern[str], api.Route]], origin: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub
        self.routes = routes
        self.origin = origin

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event; anything else that escapes a handler is printed by the handler."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for the other side to acknowledge the headers
    server: Listener

    def handle_any(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        fault = hub.faults.next(self.command, parts.path)
        if fault is not None and fault.kind == "drop":
            body = self.rfile.read(min(fault.after, int(self.headers.get("Content-Length", 0))))
            return self.hang_up(parts.path, parts.query, body)
        body = self.read_body()
        hub.keep(body)
        if fault is not None and fault.kind == "refuse":
            reply = Reply(fault.status, fault.body, {"Content-Type": "text/html", **fault.headers})
        else:
            reply = self.answer(parts.path, parts.query, body)
        if fault is not None and fault.kind == "lose":
            return self.hang_up(parts.path, parts.query, body)
        hub.seen.append(Seen(self.command, parts.path, parts.query, reply.status, len(body), self.server.origin))
        if fault is not None and fault.kind == "endless":
            return self.send_endlessly(reply)
        self.send(reply, cut=fault is not None and fault.kind == "cut")

    def answer(self, path: str, query: str, body: bytes) -> Reply:
        hub = self.server.hub
        try:
            if self.server.origin == "storage" and self.headers.get("Authorization", f"Bearer {xet.TOKEN}") != (
                f"Bearer {xet.TOKEN}"
            ):
                hub.leaks.append(path)
            account = hub.accounts.known(self.headers.get("Authorization")) if self.server.origin == "hub" else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, path, parse_qs(query), headers, body, account)
            for method, pattern, route in self.server.routes:
                found = pattern.match(path) if method == self.command else None
                if found is not None:
                    with hub.store.lock:
                        return route(hub, request, segments(found.groupdict()))
            raise Refused(404, f"No route for {self.command} {path}")
        except Refused as refused:
            return refused.reply

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, reply: Reply, *, cut: bool = False) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("X-Request-Id", f"test-{len(self.server.hub.seen)}")
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: len(reply.body) // 2] if cut else reply.body)
        if cut:
            self.close()

    def send_endlessly(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Transfer-Encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client hangs up
            for _ in range(ENDLESS):
                self.wfile.write(b"100000\r\n" + bytes(2**20) + b"\r\n")
            self.server.hub.sent_to_the_end = True
        self.close_connection = True

    def hang_up(self, path: str, query: str, body: bytes) -> None:
        self.server.hub.seen.append(Seen(self.command, path, query, DROPPED, len(body), self.server.origin))
        self.close()

    def close(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        with contextlib.suppress(OSError):  # the client was faster
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: `hub.seen` is the log."""

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any
