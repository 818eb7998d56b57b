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
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import load_file

from spafit_hf.files import write_whole
from spafit_hf.words import SpafitError, listing

GRID_FILE = "grid.json"
RESULT_FILE = "result.json"
ROWS_FILE = "rows.safetensors"
RESULTS_FILE = "results.jsonl"
CELLS, STATES = "cells", "states"
FORMAT = 1

AGAIN = "Remove the file: spafit reproduce makes it again."
IN_CELL = ("key", "task", "method", "learning_rate", "seed", "stage")
IN_RESULT = (
    *IN_CELL, "status", "error", "figure", "best", "last", "selection", "chosen_on", "trained_parameters",
    "train_rows", "validation_rows", "selection_rows", "seconds", "settings", "machine", "versions",
)  # fmt: skip
IN_GRID = ("preset", "base", "tasks", "methods", "seeds", "settings", "made_with", "cells")

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
                self.known[key] = parsed(path.read_bytes(), str(path))
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


def read_grid(path: Path) -> dict[str, Any]:
    """What `grid.json` holds.

    Raises:
        SpafitError: as `parsed`.
    """
    grid = parsed(path.read_bytes(), str(path), IN_GRID)
    for number, cell in enumerate(grid["cells"]):
        require(cell, IN_CELL, f"cell {number} of {path}", AGAIN)
    return grid


def read_rows(folder: Path, key: str) -> dict[str, np.ndarray] | None:
    """The rows of a cell; None where they are not there.

    Raises:
        SpafitError: for a damaged file.
    """
    path = folder / CELLS / key / ROWS_FILE
    if not path.is_file():
        return None
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise SpafitError(f"{path} is damaged ({error}). Remove its folder and run the same command again.") from error


def parsed(content: bytes, where: str, names: Collection[str] = IN_RESULT) -> dict[str, Any]:
    """What a file of a grid's folder holds, a result's or a line of results; `where` is its name, `names` what it has
    to hold.

    Raises:
        SpafitError: for what is no JSON, of another format, or not complete.
    """
    found = parsed_json(content, where, AGAIN)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise SpafitError(f"{where} is not of format {FORMAT}. Use the version of spafit-hf that wrote it.")
    require(found, names, where, AGAIN)
    return found


def parsed_json(content: bytes, where: str, remedy: str) -> Any:
    """What JSON of one of our own files holds; a SpafitError that ends with the remedy where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: also of bytes that are no UTF-8
        raise SpafitError(f"{where} is not JSON ({error}). {remedy}") from error


def require(found: Any, names: Collection[str], where: str, remedy: str) -> None:
    """Raise a SpafitError where something read is no object with all these names."""
    missing = [name for name in names if name not in found] if isinstance(found, dict) else names
    if missing:
        raise SpafitError(f"{where} is damaged: it has no {listing([*missing], 'or')}. {remedy}")


def as_line(value: Any) -> bytes:
    """JSON on a line."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()


def clean(place: Path) -> None:
    """Empty a cell's folder of what a try that did not end has left."""
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
