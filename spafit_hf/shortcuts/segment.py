"""A pair of files: states one after the other, and an index of records that say what lies where.

    <name>.states    | row | row | row ...        the bytes of each row's states, (tokens, width), one dtype
    <name>.index     | record | record ...        key 16, offset 8, tokens 4, crc of the states 4, crc of the record 4

One process alone appends to a segment; any number read. States go first and their record after them, so a
record that is whole speaks of states that are whole, wherever the writer was killed. What a crash of the machine may
leave is caught by the checksum when an entry is first read.
"""

from __future__ import annotations

import mmap
import os
import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

RECORD = struct.Struct("<16sQII")
CRC = struct.Struct("<I")
RECORD_BYTES = RECORD.size + CRC.size

STATES, INDEX = ".states", ".index"


@dataclass(frozen=True)
class Place:
    """Where an entry lies."""

    offset: int
    tokens: int
    crc: int


class SegmentReader:
    """Reads a segment that may still grow."""

    def __init__(self, path: Path, width: int, dtype: torch.dtype) -> None:
        self.path = path  # without a suffix
        self.width = width
        self.dtype = dtype
        self._read = 0
        self._map: mmap.mmap | None = None
        self._checked: set[int] = set()

    def new_records(self) -> dict[bytes, Place]:
        """Records that are whole and were not there the last time."""
        found: dict[bytes, Place] = {}
        try:
            with open(self.path.with_suffix(INDEX), "rb") as file:
                file.seek(self._read)
                data = file.read()
            end = self.path.with_suffix(STATES).stat().st_size
        except OSError:
            return found  # removed by hand, which is a user's right
        for start in range(0, len(data) - RECORD_BYTES + 1, RECORD_BYTES):
            record = data[start : start + RECORD.size]
            (crc,) = CRC.unpack_from(data, start + RECORD.size)
            key, offset, tokens, states_crc = RECORD.unpack(record)
            if zlib.crc32(record) != crc or offset + self._bytes(tokens) > end:
                break
            found[key] = Place(offset, tokens, states_crc)
            self._read += RECORD_BYTES
        return found

    def states(self, place: Place) -> torch.Tensor | None:
        """States of shape (tokens, width), in mapped memory; None where the file does not hold what was written."""
        size = self._bytes(place.tokens)
        if self._map is None or len(self._map) < place.offset + size:
            try:
                with open(self.path.with_suffix(STATES), "rb") as file:
                    # Copy on write: torch wants memory it could write to, and the file stays as it is.
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError):
                return None
            if len(self._map) < place.offset + size:
                return None
        if place.offset not in self._checked:
            with memoryview(self._map) as view, view[place.offset : place.offset + size] as part:
                if zlib.crc32(part) != place.crc:
                    return None
            self._checked.add(place.offset)
        flat = torch.frombuffer(self._map, dtype=self.dtype, count=place.tokens * self.width, offset=place.offset)
        return flat.view(place.tokens, self.width)

    def _bytes(self, tokens: int) -> int:
        return tokens * self.width * self.dtype.itemsize


class SegmentWriter:
    """Appends to a segment of its own."""

    def __init__(self, folder: Path) -> None:
        """Create an empty segment.

        Raises:
            OSError: when the folder cannot be written to.
        """
        self.path = folder / uuid.uuid4().hex
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self._states = os.open(self.path.with_suffix(STATES), flags, 0o644)
        try:
            self._index = os.open(self.path.with_suffix(INDEX), flags, 0o644)
        except OSError:
            os.close(self._states)
            self.path.with_suffix(STATES).unlink(missing_ok=True)
            raise
        self._end = self._index_end = 0

    def append(self, entries: Sequence[tuple[bytes, torch.Tensor]]) -> None:
        """Write entries: key and states of shape (tokens, width), contiguous, on the CPU.

        Raises:
            OSError: when they do not fit on the disk. Then none of them is there, and what stood before them is.
        """
        records, offset = [], self._end
        try:
            for key, states in entries:
                data = states.reshape(-1).view(torch.uint8).numpy().data
                _write_all(self._states, data)
                record = RECORD.pack(key, offset, states.shape[0], zlib.crc32(data))
                records.append(record + CRC.pack(zlib.crc32(record)))
                offset += len(data)
            _write_all(self._index, memoryview(b"".join(records)))
        except OSError:
            # The index first: a record must never point at what is gone.
            os.ftruncate(self._index, self._index_end)
            os.ftruncate(self._states, self._end)
            os.lseek(self._index, self._index_end, os.SEEK_SET)
            os.lseek(self._states, self._end, os.SEEK_SET)
            raise
        self._end = offset
        self._index_end += RECORD_BYTES * len(records)

    def close(self) -> None:
        """Close the files, and remove them where nothing was written."""
        os.close(self._states)
        os.close(self._index)
        if not self._index_end:
            self.path.with_suffix(INDEX).unlink(missing_ok=True)
            self.path.with_suffix(STATES).unlink(missing_ok=True)


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]
