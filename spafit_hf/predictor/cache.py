"""Loaded adapters within a limit in bytes: the one that was not used for longest goes, and comes back from its folder.

Only the tensors go. What a predictor knows of an adapter (`AdapterFacts`) and where its folder is stay with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from spafit_hf.names import WEIGHTS_FILE
from spafit_hf.predictor.facts import AdapterFacts
from spafit_hf.predictor.patch import LoadedAdapter


@dataclass(eq=False)
class Entry:
    """An adapter on a predictor, loaded or not."""

    facts: AdapterFacts
    folder: Path
    stamp: tuple[int, int]
    """Of the weights file when it was added: nanoseconds of its last change, bytes."""
    tokenizer: PreTrainedTokenizerBase
    """The base's, or the folder's own."""
    max_length: int
    """Tokens per text."""
    removed: bool = False
    """Requests that had begun may still use it; then it is not kept."""


def stamp_of(folder: Path) -> tuple[int, int]:
    """What `Entry.stamp` holds of a folder; (0, 0) where it has no weights."""
    file = folder / WEIGHTS_FILE
    return (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else (0, 0)


class AdapterCache:
    """The loaded adapters of a predictor, up to a limit in bytes together. Not for two threads at a time."""

    def __init__(self, read: Callable[[Entry], LoadedAdapter], max_bytes: int | None) -> None:
        self.max_bytes = max_bytes
        self._read = read
        self._loaded: OrderedDict[Entry, LoadedAdapter] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Of what is loaded."""
        return sum(entry.facts.memory_bytes for entry in self._loaded)

    def get(self, entry: Entry) -> LoadedAdapter:
        """An entry's tensors, read from its folder where they are not loaded."""
        if entry in self._loaded:
            self._loaded.move_to_end(entry)
            return self._loaded[entry]
        self._make_room(entry)
        adapter = self._read(entry)
        if not entry.removed:
            self._loaded[entry] = adapter
        return adapter

    def put(self, entry: Entry, adapter: LoadedAdapter) -> None:
        """Keep an adapter that was just read."""
        self._make_room(entry)
        self._loaded[entry] = adapter

    def drop(self, entry: Entry) -> None:
        """Forget an adapter's tensors; nothing happens where they are not loaded."""
        self._loaded.pop(entry, None)

    def _make_room(self, entry: Entry) -> None:
        if self.max_bytes is not None:
            while self._loaded and self.num_bytes + entry.facts.memory_bytes > self.max_bytes:
                self._loaded.popitem(last=False)
