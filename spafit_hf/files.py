"""Files that may come from a stranger: of a plain kind, of a bounded size, their JSON as bounded plain data.

What a file costs is known before it is read: a JSON text of so many commas, colons and brackets holds no more values.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spafit_hf.words import SpafitError

MAX_DEPTH = 32
"""Lists and objects within one another."""

LARGEST = 10**100
"""Of integers: what comes of them is still a float. (A tokenizer without a longest text has 10 ** 30.)"""


@dataclass(frozen=True)
class Bounds:
    """How much a JSON file may hold."""

    size: int
    """Bytes."""
    entries: int
    """Of one list or object."""
    text: int
    """Characters of one string."""
    marks: int = 2**20
    """Commas, colons and opening brackets."""


def size_of(path: Path, error: type[SpafitError] = SpafitError) -> int | None:
    """Bytes of a file, None where there is none. Nothing of it is read.

    Raises:
        error: for a pipe, a device or a folder, and for a link out of the file's own folder. The Hub's cache, whose
            snapshots are links to its blobs, is one folder.
    """
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            folder, target = path.parent.resolve(), Path(os.path.realpath(path))
            cached = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
            if target.parent not in (folder, cached):
                raise error(f"{path} is a link to a file elsewhere, which is not followed; put the file itself there.")
            found = target.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror}.") from failure
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{path} is no regular file but a folder, pipe or device, which is not read; remove it.")
    return found.st_size


def read_json(path: Path, bounds: Bounds, error: type[SpafitError] = SpafitError) -> Any:
    """What a JSON file holds.

    Raises:
        error: if it is missing, of another kind (`size_of`), beyond the bounds, or no JSON.
    """
    size = size_of(path, error)
    if size is None:
        raise error(f"{path} cannot be read: No such file or directory.")
    if size > bounds.size:
        raise error(f"{path.name} has {size:,} bytes; more than {bounds.size:,} cannot be right for it.")
    try:
        content = path.read_bytes()
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror}.") from failure
    return parse_json(content, path.name, bounds, error)


def parse_json(content: bytes, name: str, bounds: Bounds, error: type[SpafitError] = SpafitError) -> Any:
    """The same for the content of a file; errors call it `name`."""
    if sum(map(content.count, (b",", b":", b"[", b"{"))) > bounds.marks:
        raise error(f"{name} holds more values than can be right for it.")
    try:
        data = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as failure:  # ValueError: also of an integer of thousands of digits
        raise error(f"{name} is not valid JSON: {failure}.") from failure
    level, depth = [data], 0
    while level:
        below: list[Any] = []
        for value in level:
            if isinstance(value, (dict, list)):
                if len(value) > bounds.entries:
                    raise error(
                        f"{name} has {len(value):,} entries in one place; at most {bounds.entries:,} are read."
                    )
                below += value
                below += value.values() if isinstance(value, dict) else ()
            elif isinstance(value, str):
                _check_text(value, name, bounds, error)
            elif isinstance(value, int) and abs(value) > LARGEST:
                raise error(f"{name} holds the number {str(value)[:12]}..., which is too large to be right.")
        level, depth = below, depth + 1
        if depth > MAX_DEPTH:
            raise error(f"{name} is nested too deeply; {MAX_DEPTH} lists and objects within one another are read.")
    return data


def _check_text(text: str, name: str, bounds: Bounds, error: type[SpafitError]) -> None:
    if len(text) > bounds.text:
        raise error(
            f"{name} holds a text of {len(text):,} characters, {text[:20]!r}...; at most {bounds.text:,} are read."
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as failure:  # JSON can write half of a pair, which no output can
            raise error(f"{name} holds a text that is no valid Unicode, {text[:20]!r}.") from failure


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that nothing more can be written. Libraries in Rust have it as words."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
