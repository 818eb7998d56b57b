"""Who works on a cell: a file with host and process, touched while they live.

A claim is dead, and the cell free, where its process on this host has ended, or where it was not touched for long.
Two that work on one cell would waste time and spoil nothing: the first result stays.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from spafit_hf.reproduce.results import CELLS, RESULT_FILE, Results, clean

CLAIM_FILE = "claim"
BEAT_SECONDS = 30.0
STALE_SECONDS = 600.0
"""Without a touch for so long, a claim of another host is dead; clocks may differ by minutes."""


class Claims:
    """The claims of this process, touched by a thread until they are given up.

    Example:
        with Claims(results) as claims:
            if claims.take(key):
                ...
                claims.give_up(key)
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self._owner = {"host": platform.node(), "pid": os.getpid()}
        self._held: dict[str, Path] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> Claims:
        with self.results.lock():  # a process may have been killed between its result and the end of its claim
            for path in self.results.folder.glob(f"{CELLS}/*/{CLAIM_FILE}"):
                if (path.parent / RESULT_FILE).exists() and not self._is_alive(path):
                    path.unlink()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        for key in list(self._held):
            self.give_up(key)

    def take(self, key: str) -> bool:
        """Claim a cell that is neither done nor another's, and clear away what an earlier try has left."""
        place = self.results.cell(key)
        with self.results.lock():
            if (place / RESULT_FILE).exists() or self._is_alive(place / CLAIM_FILE):
                return False
            place.mkdir(exist_ok=True)
            clean(place)
            (place / CLAIM_FILE).write_text(json.dumps(self._owner), encoding="utf-8")
        self._held[key] = place / CLAIM_FILE
        return True

    def give_up(self, key: str) -> None:
        """Free a cell, done or not; one that is not done leaves nothing behind."""
        path = self._held.pop(key)
        with self.results.lock():
            if _owner(path) == self._owner:  # and has not been taken over since
                path.unlink()
                if not (path.parent / RESULT_FILE).exists():
                    clean(path.parent)
                    path.parent.rmdir()

    def _is_alive(self, path: Path) -> bool:
        owner = _owner(path)
        # Half a claim is of one who was killed while he wrote; one of ours that is new to us had our number before.
        if owner is None or owner == self._owner or time.time() - path.stat().st_mtime > STALE_SECONDS:
            return False
        if owner["host"] == self._owner["host"]:
            with suppress(PermissionError):  # of another user's process, which runs
                try:
                    os.kill(owner["pid"], 0)
                except ProcessLookupError:
                    return False
        return True

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            for path in list(self._held.values()):
                with suppress(FileNotFoundError):  # given up at this moment
                    if _owner(path) == self._owner:
                        os.utime(path)


def _owner(path: Path) -> dict[str, Any] | None:
    with suppress(FileNotFoundError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None
