"""The files of a grid's folder. A result is there whole or not at all, whatever ends the process.

grid.json                      what is wanted
cells/<key>/result.json        exists: the cell is done     rows.safetensors   its rows, written before it
results.jsonl                  one line per result, sorted; made from the cells, and made again at any time
states/                        hidden states of frozen layers; may be deleted
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from spafit_hf.files import write_whole
from spafit_hf.words import SpafitError

GRID_FILE = "grid.json"
RESULT_FILE = "result.json"
ROWS_FILE = "rows.safetensors"
RESULTS_FILE = "results.jsonl"
CELLS, STATES = "cells", "states"
FORMAT = 1

LOCK_SECONDS = 60.0


class Results:
    """The results in a folder; what has been read is not read again, for a result never changes.

    Args:
        folder: of the grid; made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, dict[str, Any]] = {}
        """Key -> result."""
        (folder / CELLS).mkdir(parents=True, exist_ok=True)
        self.refresh()

    def lock(self) -> FileLock:
        """What a process holds that takes a cell or writes a file that others write too; freed by its death."""
        return FileLock(self.folder / ".lock", timeout=LOCK_SECONDS)

    def cell(self, key: str) -> Path:
        """The folder of a cell."""
        return self.folder / CELLS / key

    def refresh(self) -> dict[str, dict[str, Any]]:
        """See what others have finished; returns all results by key."""
        for key in set(os.listdir(self.folder / CELLS)) - self.known.keys():
            path = self.cell(key) / RESULT_FILE
            if path.exists():
                self.known[key] = parsed(path.read_text(encoding="utf-8"), str(path))
        return self.known

    def add(self, result: dict[str, Any], rows: bytes | None) -> None:
        """Keep a cell's result: the rows first, and with the result it is done. The first one stays.

        Raises:
            OSError: the disk; the cell is open then.
        """
        place = self.cell(result["key"])
        with self.lock():
            if not (place / RESULT_FILE).exists():
                place.mkdir(exist_ok=True)
                if rows is not None:
                    write_whole(place / ROWS_FILE, rows)
                write_whole(place / RESULT_FILE, as_line(result))
        self.refresh()

    def write_lines(self) -> None:
        """Write `results.jsonl`."""
        with self.lock():
            order = ("task", "method", "learning_rate", "seed", "key")
            found = sorted(self.refresh().values(), key=lambda result: [result[name] for name in order])
            write_whole(self.folder / RESULTS_FILE, b"".join(map(as_line, found)))


def parsed(text: str, where: str) -> dict[str, Any]:
    """What a file of a grid's folder holds, or a line of it; `where` is its name.

    Raises:
        SpafitError: for what is no JSON, or of another format.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SpafitError(
            f"{where} is not JSON ({error}). Remove the file: spafit reproduce makes it again."
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise SpafitError(f"{where} is not of format {FORMAT}. Use the version of spafit-hf that wrote it.")
    return found


def as_line(value: Any) -> bytes:
    """JSON on a line."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()


def clean(place: Path) -> None:
    """Empty a cell's folder of what a try that did not end has left."""
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
