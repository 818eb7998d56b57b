"""Entries in a folder: the segments of all processes that ever wrote there, and a budget of bytes.

    <folder>/.lock                           held while bytes are counted and written
    <folder>/<fingerprint>/about.json        what the fingerprint stands for, for people
    <folder>/<fingerprint>/<any>.states .index

Nothing is ever overwritten. Two processes may both write a row, which costs disk and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from spafit_hf.shortcuts.segment import INDEX, RECORD_BYTES, Place, SegmentReader, SegmentWriter

logger = logging.getLogger(__name__)

FREE_BYTES = 2**30
"""Bytes of the disk that are never taken: checkpoints need some."""

LOCK_SECONDS = 60.0


class Store:
    """The entries of one fingerprint, `name`, in the folder of the cache, all of which counts for `max_bytes`.

    States are of `dtype`, `width` values per token; `about` goes into `about.json`.
    """

    def __init__(
        self, folder: Path, name: str, about: dict[str, Any], width: int, dtype: torch.dtype, max_bytes: int
    ) -> None:
        self.root = Path(folder)
        self.folder = self.root / name
        self.dtype = dtype
        self.width = width
        self.max_bytes = max_bytes
        self.full: str = ""
        """Why nothing more is written; "" while something is."""
        self._readers: dict[Path, SegmentReader] = {}
        self._places: dict[bytes, tuple[SegmentReader, Place]] = {}
        self._writer: SegmentWriter | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / "about.json"
            if not path.exists():
                partial = path.with_suffix(f".{os.getpid()}")
                partial.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
                os.replace(partial, path)
        except OSError as error:
            self.full = f"{self.folder} cannot be written to ({error.strerror or error})"
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def refresh(self) -> None:
        """See what other processes have written since."""
        try:
            paths = sorted(path.with_suffix("") for path in self.folder.glob(f"*{INDEX}"))
        except OSError:
            return
        for path in paths:
            self._take(path)

    def _take(self, path: Path) -> None:
        reader = self._readers.setdefault(path, SegmentReader(path, self.width, self.dtype))
        for key, place in reader.new_records().items():
            self._places.setdefault(key, (reader, place))

    def get(self, key: bytes) -> torch.Tensor | None:
        """The states of a row, (tokens, width) in mapped memory, not to be written to; None where there are none."""
        if key not in self._places:
            return None
        reader, place = self._places[key]
        states = reader.states(place)
        if states is None:
            logger.warning("Prefix cache: an entry in %s is damaged and is computed again.", reader.path)
            del self._places[key]
        return states

    def put(self, entries: Sequence[tuple[bytes, torch.Tensor]]) -> int:
        """Write rows that are not there yet; returns how many. What does not fit is left out, and `full` says why.

        Args:
            entries: key and states of shape (tokens, width) in the store's dtype, on the CPU.
        """
        fresh = {key: states.contiguous() for key, states in entries if key not in self._places}
        if self.full or not fresh:
            return 0
        try:
            with FileLock(self.root / ".lock", timeout=LOCK_SECONDS):
                if self._writer is None:
                    self._writer = SegmentWriter(self.folder)
                fitting = self._fitting(fresh)
                if fitting:
                    self._writer.append(fitting)
        except OSError as error:
            self.full = f"writing to {self.folder} failed ({error.strerror or error})"
            return 0
        self._take(self._writer.path)
        return len(fitting)

    def _fitting(self, fresh: dict[bytes, torch.Tensor]) -> list[tuple[bytes, torch.Tensor]]:
        used = self.used_bytes()
        free = shutil.disk_usage(self.folder).free - FREE_BYTES
        fitting = []
        for key, states in fresh.items():
            size = states.numel() * states.element_size() + RECORD_BYTES
            used, free = used + size, free - size
            if used > self.max_bytes:
                other = self.used_bytes() - self.used_bytes(self.folder)
                self.full = f"the budget of {self.max_bytes:,} bytes is used up" + (
                    f", {other:,} of them by other bases, strategies or versions; delete what is old in {self.root}"
                    if other > self.max_bytes // 10
                    else "; raise prefix_cache_max_bytes for more"
                )
                break
            if free < 0:
                self.full = f"the disk of {self.root} is full but for {FREE_BYTES:,} bytes that checkpoints may need"
                break
            fitting.append((key, states))
        return fitting

    def used_bytes(self, folder: Path | None = None) -> int:
        """Bytes on disk: of one fingerprint's folder, or of the whole cache."""
        files = folder.iterdir() if folder else self.root.glob("*/*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def close(self) -> None:
        """Close the segment this process writes to. What it holds stays."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._readers.clear()
        self._places.clear()
