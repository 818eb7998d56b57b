"""Xet: files as chunks, chunks in xorbs, xorbs named by shards. Enough of it for hf_xet to upload and download.

    xorb    header, data, header, data, ...         header: version, 3 bytes size, scheme, 3 bytes size unpacked
    shard   48 bytes, files, FF.., xorbs, FF..      a file is a list of terms: chunks [start, end) of a xorb

Contents are unpacked when their shard arrives, so that a client without xet gets the same file over HTTP, and a test
can look into it. Formats: huggingface/xet-core, spec/shard.md, xorb.md and api.md.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hub.accounts import must_write
from hub.api import REPO, Route
from hub.files import ranged
from hub.wire import Refused, Reply, Request

if TYPE_CHECKING:
    from hub.server import HubServer

ENTRY = 48
BOOKEND = b"\xff" * 32
WITH_VERIFICATION, WITH_METADATA = 1 << 31, 1 << 30
FAR_FUTURE = 4_000_000_000
TOKEN = "xet-token-for-tests"

ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
STORAGE_ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


@dataclass(frozen=True)
class Chunk:
    start: int
    """Of its header in the xorb."""
    end: int
    data: bytes


@dataclass(frozen=True)
class Term:
    xorb: str
    length: int
    start: int
    end: int


class XetStore:
    """Xorbs by their hash, files by theirs, and which content a file is."""

    def __init__(self) -> None:
        self.xorbs: dict[str, bytes] = {}
        self.files: dict[str, tuple[Term, ...]] = {}
        self.by_sha256: dict[str, str] = {}


def hash_text(raw: bytes) -> str:
    """A hash as it stands in paths: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def chunks(xorb: bytes) -> Iterator[Chunk]:
    at = 0
    while at + 8 <= len(xorb) and xorb[at] == 0:  # what follows the chunks is a footer, which starts with a letter
        packed = int.from_bytes(xorb[at + 1 : at + 4], "little")
        scheme = xorb[at + 4]
        end = at + 8 + packed
        data = xorb[at + 8 : end]
        if scheme in (1, 2):
            data = lz4_frame(data)
        if scheme == 2:
            data = ungroup(data)
        assert len(data) == int.from_bytes(xorb[at + 5 : at + 8], "little")
        yield Chunk(at, end, data)
        at = end


def ungroup(grouped: bytes) -> bytes:
    """Bytes that were sorted by their place in groups of four, back in their order."""
    out = bytearray(len(grouped))
    at = 0
    for place in range(4):
        count = len(range(place, len(grouped), 4))
        out[place::4] = grouped[at : at + count]
        at += count
    return bytes(out)


def lz4_frame(data: bytes) -> bytes:
    """Unpack an LZ4 frame (lz4_Frame_format.md); checksums are not looked at."""
    flags = data[4]
    at = 7 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)
    out = bytearray()
    while size := int.from_bytes(data[at : at + 4], "little"):
        at += 4
        length = size & 0x7FFFFFFF
        block = data[at : at + length]
        at += length + (4 if flags & 0x10 else 0)
        if size >> 31:
            out += block
        else:
            lz4_block(block, out)
    return bytes(out)


def lz4_block(block: bytes, out: bytearray) -> None:
    at = 0

    def more(length: int) -> int:
        nonlocal at
        if length == 15:
            while True:
                length += block[at]
                at += 1
                if block[at - 1] != 255:
                    break
        return length

    while at < len(block):
        token = block[at]
        at += 1
        literals = more(token >> 4)
        out += block[at : at + literals]
        at += literals
        if at >= len(block):
            return
        distance = int.from_bytes(block[at : at + 2], "little")
        at += 2
        for _ in range(more(token & 15) + 4):
            out.append(out[-distance])


def files_of(shard: bytes) -> dict[str, tuple[Term, ...]]:
    """File hash -> its terms."""
    found = {}
    at = ENTRY
    while shard[at : at + 32] != BOOKEND:
        name = hash_text(shard[at : at + 32])
        flags, count = struct.unpack("<II", shard[at + 32 : at + 40])
        at += ENTRY
        terms = []
        for _ in range(count):
            _, length, start, end = struct.unpack("<4I", shard[at + 32 : at + ENTRY])
            terms.append(Term(hash_text(shard[at : at + 32]), length, start, end))
            at += ENTRY
        at += ENTRY * (count if flags & WITH_VERIFICATION else 0) + ENTRY * bool(flags & WITH_METADATA)
        found[name] = tuple(terms)
    return found


# -- the Hub: tokens for the storage ----------------------------------------------------------------------------------


def token(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    repo = hub.readable(found["kind"], found["id"], request.account, contents=True)
    if found["what"] == "write" and not request.flag("create_pr"):
        must_write(request.account, repo.namespace)
    body = {"casUrl": hub.storage, "accessToken": TOKEN, "exp": FAR_FUTURE}
    headers = {"X-Xet-Cas-Url": hub.storage, "X-Xet-Access-Token": TOKEN, "X-Xet-Token-Expiration": str(FAR_FUTURE)}
    return Reply.json(body, **headers)


# -- the storage ------------------------------------------------------------------------------------------------------


def put_xorb(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    new = found["hash"] not in hub.xet.xorbs
    hub.xet.xorbs[found["hash"]] = request.body
    return Reply.json({"was_inserted": new})


def put_shard(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    for name, terms in files_of(request.body).items():
        parts = []
        for term in terms:
            if term.xorb not in hub.xet.xorbs:
                raise Refused(400, f"Shard names a xorb that is not here: {term.xorb}")
            parts += [chunk.data for chunk in list(chunks(hub.xet.xorbs[term.xorb]))[term.start : term.end]]
        hub.xet.files[name] = terms
        hub.xet.by_sha256[hub.store.put(b"".join(parts))] = name
    return Reply.json({"result": 1})


def reconstruction(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    if found["hash"] not in hub.xet.files:
        raise Refused(404, "No such file")
    wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
    first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, 2**62)
    terms, fetch, at, skipped = [], {}, 0, None
    for term in hub.xet.files[found["hash"]]:
        begin, at = at, at + term.length
        if at <= first or begin > last:
            continue
        skipped = max(0, first - begin) if skipped is None else skipped
        span = list(chunks(hub.xet.xorbs[term.xorb]))[term.start : term.end]
        where = {"start": term.start, "end": term.end}
        terms.append({"hash": term.xorb, "unpacked_length": term.length, "range": where})
        place = {
            "range": where,
            "url": f"{hub.storage}/xorb/{term.xorb}?signature=made-up",
            "url_range": {"start": span[0].start, "end": span[-1].end - 1},
        }
        if place not in fetch.setdefault(term.xorb, []):
            fetch[term.xorb].append(place)
    if not terms and hub.xet.files[found["hash"]]:
        raise Refused(416, "The range starts behind the end of the file")
    return Reply.json({"offset_into_first_range": skipped or 0, "terms": terms, "fetch_info": fetch})


def get_xorb(hub: HubServer, request: Request, found: dict[str, str]) -> Reply:
    if found["hash"] not in hub.xet.xorbs:
        raise Refused(404, "No such xorb")
    return ranged(request, hub.xet.xorbs[found["hash"]], {"Content-Type": "application/octet-stream"})


HASH = r"(?P<hash>[0-9a-f]{64})"
ROUTES.append(("GET", re.compile(REPO + r"/xet-(?P<what>read|write)-token/(?P<rev>[^/]+)$"), token))
STORAGE_ROUTES.append(("POST", re.compile(rf"^/v1/xorbs/[\w-]+/{HASH}$"), put_xorb))
STORAGE_ROUTES.append(("POST", re.compile(r"^/v1/shards$"), put_shard))
STORAGE_ROUTES.append(("GET", re.compile(rf"^/v1/reconstructions/{HASH}$"), reconstruction))
STORAGE_ROUTES.append(("GET", re.compile(rf"^/xorb/{HASH}$"), get_xorb))
