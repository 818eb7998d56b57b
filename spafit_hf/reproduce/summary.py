"""A folder of finished cells -> the numbers of the report: an entry per task and method, and what differs by how much.

grid.json ------> which cells were wanted
results.jsonl --> which are there -> the rate of each task and method -> scores over seeds
rows.safetensors of those cells ---> differences with intervals
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spafit_hf.data.glue import PAPER_SCORES, TASKS
from spafit_hf.reproduce.results import CELLS, GRID_FILE, RESULTS_FILE, parsed, read_grid, read_rows
from spafit_hf.reproduce.statistics import (
    DRAWS,
    Difference,
    accuracy_error,
    difference,
    resampled,
    row_error,
    weighted,
)
from spafit_hf.words import SpafitError

SAME = 1e-6
"""A score that rows give may be off the recorded one by rounding alone."""
SAYS_NOTHING = "wnli"
"""Its validation rows repeat train sentences with the other label; left out of every average and test over tasks."""

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One task and one method, at the learning rate chosen for it; scores are shares of 1."""

    task: str
    method: str
    rate: float | None
    rates: tuple[float, ...]
    """Tried, those of a search before the table included."""
    rate_from: str
    """What the rate was chosen on: train part, validation, or one rate."""
    wanted: int
    """Runs of the table that the grid names at the chosen rate."""
    cells: tuple[Cell, ...]
    """Those that came to an end, well or not, by seed; runs that failed are not among them."""
    failed: int
    best_of_all: tuple[float, ...]
    """The best scores of all runs at all rates: their maximum is what the paper reports."""
    drawn: np.ndarray | None = None
    """[1 + draws, cells], scores on resampled rows; None where a cell lacks its rows."""

    @property
    def scores(self) -> list[float]:
        return [_score(cell, "best") or 0.0 for cell in self.cells]

    @property
    def mean(self) -> float | None:
        return float(np.mean(self.scores)) if self.cells else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for fewer than two."""
        return float(np.std(self.scores, ddof=1)) if len(self.cells) > 1 else None

    @property
    def last(self) -> float | None:
        return float(np.mean([_score(cell, "last") or 0.0 for cell in self.cells])) if self.cells else None

    @property
    def error(self) -> float | None:
        """What other validation rows of the same number would do to one run's score; None where rows are missing."""
        if self.mean is not None and self.figure == "accuracy":
            return accuracy_error(self.mean, self.cells[0]["validation_rows"])
        return None if self.drawn is None else row_error(self.drawn[1:])

    @property
    def figure(self) -> str:
        return TASKS[self.task].main_metric

    @property
    def undefined(self) -> int:
        """Scores that count as 0: of a constant prediction, or of a run that diverged and left none."""
        return sum(map(_counts_as_0, self.cells))

    @property
    def best(self) -> float | None:
        return max(self.best_of_all, default=None)

    @property
    def paper(self) -> float | None:
        return PAPER_SCORES[self.task].get(self.method)

    @property
    def to_paper(self) -> float | None:
        """The best of all runs less the paper's, which is a best as well."""
        return None if self.best is None or self.paper is None else self.best - self.paper

    def average_of(self, field: str) -> float | None:
        """The mean over runs of a number that a result holds: seconds, trained_parameters."""
        return float(np.mean([cell[field] for cell in self.cells])) if self.cells else None


@dataclass(frozen=True)
class Summary:
    """All that the report says, as numbers."""

    grid: Mapping[str, Any]
    results: tuple[Cell, ...]
    strangers: int
    """Results of runs that the grid does not name, as after a search over other rates; they are in no number."""
    missing: tuple[Cell, ...]
    """The grid's cells without a result; a rate is None where the search for it has not ended."""
    entries: Mapping[tuple[str, str], Entry]
    """(task, method), those that the grid names, in its order."""

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for task, _ in self.entries))

    @property
    def counted(self) -> list[str]:
        """The tasks that an average may hold."""
        return [task for task in self.tasks if task != SAYS_NOTHING]

    @property
    def methods(self) -> list[str]:
        return [name for name in self.grid["methods"] if any(name == method for _, method in self.entries)]

    def means(self, method: str) -> dict[str, float]:
        """task -> mean score, where there is one."""
        found = {task: entry.mean for (task, name), entry in self.entries.items() if name == method}
        return {task: mean for task, mean in found.items() if mean is not None}

    def difference(self, task: str, method: str, other: str) -> Difference | None:
        """Of two methods on one task, over the seeds that both have; None where there are none."""
        ours, theirs = self.entries.get((task, method)), self.entries.get((task, other))
        if ours is None or theirs is None or ours.drawn is None or theirs.drawn is None:
            return None
        seeds, others = ([cell["seed"] for cell in entry.cells] for entry in (ours, theirs))
        columns = [(seeds.index(seed), others.index(seed)) for seed in seeds if seed in others]
        pairs = [ours.drawn[:, a] - theirs.drawn[:, b] for a, b in columns]
        return difference(np.stack(pairs, axis=1)) if pairs else None

    def over(self, tasks: Iterable[str], method: str, other: str) -> tuple[Difference | None, list[str]]:
        """The mean difference over those of the tasks that have one, and their names."""
        found = {task: one for task in tasks if (one := self.difference(task, method, other)) is not None}
        return (weighted([(1 / len(found), one) for one in found.values()]) if found else None), list(found)


def summarize(output: Path) -> Summary:
    """Read a folder of `spafit reproduce`.

    Args:
        output: holds grid.json, results.jsonl and cells/KEY/rows.safetensors.

    Raises:
        SpafitError: a file is missing or damaged, a cell is there twice, the rows of a cell do not give its recorded
            score, or two cells of a task have other labels.
    """
    grid, lines = _read(output)
    keys = {cell["key"] for cell in grid["cells"]}
    results = sorted((cell for cell in lines if cell["key"] in keys), key=_order)
    there = {cell["key"] for cell in results}
    missing = sorted((cell for cell in grid["cells"] if cell["key"] not in there), key=_order)
    entries: dict[tuple[str, str], Entry] = {}
    for task in grid["tasks"]:
        of_task = []
        for method in grid["methods"]:
            pair = task, method
            plan = [cell for cell in grid["cells"] if (cell["task"], cell["method"]) == pair]
            if plan:
                done = [cell for cell in results if (cell["task"], cell["method"]) == pair]
                of_task.append(_entry(task, method, plan, done))
        drawn = _draw(output, of_task)
        entries |= {(task, entry.method): replace(entry, drawn=drawn.get(entry.method)) for entry in of_task}
    return Summary(grid, tuple(results), len(lines) - len(results), tuple(missing), entries)


def _entry(task: str, method: str, plan: Sequence[Cell], done: Sequence[Cell]) -> Entry:
    ended = [cell for cell in done if cell["status"] != "failed"]
    failed = Counter(cell["learning_rate"] for cell in done if cell["status"] == "failed" and cell["stage"] == "main")
    table: dict[float | None, list[Cell]] = {}
    for cell in ended:
        if cell["stage"] == "main":
            table.setdefault(cell["learning_rate"], []).append(cell)
    # Cells are sorted by rate, and max takes the first of equals: the lower rate.
    rate = max(table, key=lambda one: np.mean([_chooses(cell) for cell in table[one]]), default=None)
    planned = Counter(cell["learning_rate"] for cell in plan if cell["stage"] == "main")
    tried = sorted({cell["learning_rate"] for cell in done})
    held_out = all(cell["selection"] for cell in ended if cell["best"])
    return Entry(
        task=task,
        method=method,
        rate=rate,
        rates=tuple(tried),
        rate_from="one rate" if len(tried) < 2 else "train part" if held_out else "validation",
        wanted=max(planned.values(), default=0) if rate is None else planned[rate],
        cells=tuple(table.get(rate, ())),
        failed=failed.total() if rate is None else failed[rate],
        best_of_all=tuple(_score(cell, "best") or 0.0 for cell in ended),
    )


def _score(cell: Cell, which: str) -> float | None:
    return cell[which]["score"] if cell[which] else None


def _counts_as_0(cell: Cell) -> bool:
    return _score(cell, "best") is None


def _chooses(cell: Cell) -> float:
    """What a rate is chosen by: the score on the part of train that was held out, else that on the validation set."""
    if cell["status"] != "done":
        return 0.0
    return (cell["selection"]["best"] if cell["selection"] else _score(cell, "best")) or 0.0


def _draw(output: Path, entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    """method -> scores [1 + draws, cells] on the same rows for all; not of a method of which a cell lacks its rows."""
    keys = [cell["key"] for entry in entries for cell in entry.cells if not _counts_as_0(cell)]
    rows = {key: read_rows(output, key) for key in keys}
    files = {key: tensors for key, tensors in rows.items() if tensors is not None}
    if not files:
        return {}
    labels = next(iter(files.values()))["labels"]
    for key, tensors in files.items():
        if not np.array_equal(labels, tensors["labels"]):
            raise SpafitError(
                f"The labels of cell {key} are not those of {next(iter(files))}: they were measured on other rows. "
                f"Remove the folder of one and run the grid again."
            )
    seed = zlib.crc32(entries[0].task.encode())
    predictions = np.stack([tensors["best_predictions"] for tensors in files.values()])
    scores = dict(zip(files, resampled(entries[0].figure, labels, predictions, seed).T, strict=True))
    drawn = {}
    for entry in entries:
        for cell, recorded in zip(entry.cells, entry.scores, strict=True):
            if cell["key"] in scores and abs(recorded - (found := scores[cell["key"]][0])) > SAME:
                raise SpafitError(
                    f"Cell {cell['key']} has {entry.figure} {recorded:.6f} in its result and {found:.6f} by its rows. "
                    f"Remove its folder and run the grid again."
                )
        if entry.cells and all(cell["key"] in scores or _counts_as_0(cell) for cell in entry.cells):
            drawn[entry.method] = np.stack(
                [scores.get(cell["key"], np.zeros(1 + DRAWS)) for cell in entry.cells], axis=1
            )
    return drawn


def _order(cell: Cell) -> tuple[Any, ...]:
    return cell["task"], cell["method"], cell["learning_rate"] or 0.0, cell["seed"], cell["stage"], cell["key"]


def _read(output: Path) -> tuple[dict[str, Any], list[Cell]]:
    if not (output / GRID_FILE).is_file():
        raise SpafitError(f"There is no {GRID_FILE} in {output}. Give a folder that spafit reproduce --output wrote.")
    grid = read_grid(output / GRID_FILE)
    path = output / RESULTS_FILE
    lines = path.read_bytes().splitlines() if path.is_file() else []
    results: list[Cell] = [parsed(line, f"line {number} of {RESULTS_FILE}") for number, line in enumerate(lines, 1)]
    key, times = next(iter(Counter(cell["key"] for cell in results).most_common(1)), ("", 0))
    if times > 1:
        raise SpafitError(
            f"{RESULTS_FILE} has cell {key} {times} times. Remove the file: it is made again from {CELLS}/."
        )
    return grid, results
