"""A grid in seconds: two GLUE tasks of a few words each, and the flags of a grid on a tiny base."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from reviews_run import BAD, GOOD, NOUNS

from spafit_hf.reproduce.grid import Grid
from spafit_hf.reproduce.work import Work


def write_glue(folder: Path) -> Path:
    """CoLA, where good words are acceptable, and STS-B, where a pair is as similar as its kinds of words."""
    sentences = [
        {"sentence": f"a {first} {noun} a {second} {other}", "label": int(first in GOOD)}
        for first, second, noun, other in itertools.product((*GOOD, *BAD), (*GOOD, *BAD), NOUNS[:2], NOUNS[2:])
    ]
    pairs = [
        {"sentence1": f"a {first} {noun}", "sentence2": f"a {second} {noun}", "label": 4.0 if alike else 1.0}
        for first, second, noun in itertools.product((*GOOD, *BAD), (*GOOD, *BAD), NOUNS)
        for alike in [(first in GOOD) == (second in GOOD)]
    ]
    for task, rows in (("cola", sentences), ("stsb", pairs)):
        (folder / task).mkdir(parents=True)
        for name, part in (("validation", rows[::4]), ("train", [row for at, row in enumerate(rows) if at % 4])):
            Dataset.from_list(part).to_parquet(folder / task / f"{name}.parquet")
    return folder


SMALL: dict[str, Any] = {
    "tasks": ("cola", "stsb"),
    "methods": ("spafit-4-9-II", "full"),
    "learning_rates": {"others": (5e-3,)},
    "search_rates": {},
    "seeds": (0, 1),
    "num_train_epochs": 2.0,
    "lora_r": 4,
    "lora_alpha": 8.0,
    "max_train_rows": 40,
}


def small_work(base: Path, glue: Path, output: Path, **more: Any) -> Work:
    """A grid of cells of half a second."""
    return Work(Grid(base=str(base), data_dir=str(glue), output=str(output), **{**SMALL, **more}))


def kept(folder: Path) -> list[dict[str, Any]]:
    """The lines of a grid's results, but for time and machine."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in ("seconds", "machine")}
        for line in lines
    ]
