"""Files that may come from a stranger: of a plain kind, of a bounded size, their JSON as bounded plain data.

What a file costs is known before it is read: a JSON text of so many commas, colons and brackets holds no more values.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import tempfile
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from spafit_hf.words import SpafitError

MAX_DEPTH = 32  # of lists and objects within one another

LARGEST = 10**100
"""Of integers: what comes of them is still a float. (A tokenizer without a longest text has 10 ** 30.)"""


@dataclass(frozen=True)
class Bounds:
    """How much a JSON file may hold."""

    size: int  # bytes
    entries: int  # of one list or object
    text: int  # characters of one string
    marks: int = 2**20  # commas, colons and opening brackets


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


def check_folder(path: str | os.PathLike[str]) -> None:
    """Refuse a folder that cannot be made, before anything is computed for it.

    Raises:
        SpafitError: where the path, or one above it, is a file.
    """
    place = Path(path).absolute()
    there = next(each for each in (place, *place.parents) if each.exists())
    if not there.is_dir():
        raise SpafitError(f"{path} cannot be a folder, since {there} is a file; name another one to write to.")


def check_file(path: Path, *read: str | os.PathLike[str] | None) -> None:
    """Refuse a file that cannot be written, before anything is computed for it.

    Args:
        path: the file to write.
        read: files that the same command reads, which it must not overwrite; None is none.

    Raises:
        SpafitError: where its folder is not there, or the path is a folder or one of the files that are read.
    """
    if path.exists() and any(other and os.path.exists(other) and path.samefile(other) for other in read):
        raise SpafitError(f"{path} cannot be written: it is read by the same command; name another file.")
    if not path.parent.is_dir():
        raise SpafitError(f"{path} cannot be written: there is no folder {path.parent}; make it first.")
    if path.is_dir():
        raise SpafitError(f"{path} cannot be written: it is a folder; name a file in it.")


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


_hints = cache(typing.get_type_hints)


@dataclass(frozen=True)
class Fields:
    """Reads dataclasses from JSON types: each field is checked against its annotation."""

    error: type[SpafitError]
    most: Mapping[str, int] = field(default_factory=dict)  # entries of a field that is a list or object
    most_others: int = 10_000
    complete: bool = False  # whether every field must be there, those with a default too

    def read(self, kind: Any, data: Any, where: str) -> Any:
        """An instance of `kind`.

        Raises:
            error: for a field that is missing, unknown, or of another type; it is called `where`.
        """
        if not isinstance(data, dict):
            raise self.error(f"{where} is a {type(data).__name__}; expected is an object.")
        hints = _hints(kind)
        for name in data:
            if name not in hints:
                raise self.error(f"{where} has the unknown field {name!r}; allowed are {', '.join(sorted(hints))}.")
        for each in fields(kind):
            if each.name not in data and (self.complete or each.default is each.default_factory is MISSING):
                raise self.error(f"{where} lacks {each.name!r}.")
        return kind(**{name: self._value(hints[name], value, f"{where}.{name}") for name, value in data.items()})

    def _value(self, hint: Any, value: Any, where: str) -> Any:
        if isinstance(hint, type):
            return self.read(hint, value, where) if is_dataclass(hint) else self._scalar(hint, value, where)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):
            return None if value is None else self._value(arguments[0], value, where)
        wanted: Any = list if origin is tuple else dict
        if not isinstance(value, wanted):
            expected = "a list" if origin is tuple else "an object"
            raise self.error(f"{where} is a {type(value).__name__}; expected is {expected}.")
        if len(value) > (most := self.most.get(where.rpartition(".")[2], self.most_others)):
            raise self.error(f"{where} has {len(value):,} entries; at most {most:,} are read.")
        if origin is tuple:
            return tuple(self._value(arguments[0], each, f"{where}[{index}]") for index, each in enumerate(value))
        if arguments[1] is Any:
            return dict(value)
        return {key: self._value(arguments[1], each, f"{where}.{key}") for key, each in value.items()}

    def _scalar(self, hint: type, value: Any, where: str) -> Any:
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        wrong = not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)
        if wrong or (hint is float and not math.isfinite(value)):
            raise self.error(f"{where} is {value!r:.80}; expected is a {hint.__name__}.")
        return value


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a machine that has lost its power, finds the old one or all of the new."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's are its owner's alone
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


FULL = ("No space left on device", "PytorchStreamWriter failed writing")


def digest(*paths: Path, named: bool = False) -> str:
    """SHA-256 of files one after the other, read a block at a time: 64 hexadecimal digits.

    Args:
        paths: the files.
        named: whether their names count too, each before its file.
    """
    found = hashlib.sha256()
    for path in paths:
        found.update(path.name.encode() if named else b"")
        with path.open("rb") as file:
            while block := file.read(2**22):
                found.update(block)
    return found.hexdigest()


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that nothing more can be written. Some libraries have it as words."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(words in str(error) for words in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
