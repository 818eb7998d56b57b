"""A grid from its first open cell to its last: claimed, run, written, and counted on one line.

    Work.jobs --claim--> Backend --Outcome--> Results --> results.jsonl
        ^------ a search that has ended gives its main cells a rate

Whatever ends the process, cells that are done stay done, and the next one goes on with the others. Several, on several
machines, may work on one folder.
"""

from __future__ import annotations

import errno
import json
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from typing import Any

from spafit_hf.files import write_whole
from spafit_hf.reproduce.backends import Attempt, Local
from spafit_hf.reproduce.cell import Job, Outcome, lost
from spafit_hf.reproduce.claim import Claims
from spafit_hf.reproduce.grid import Cell, Grid
from spafit_hf.reproduce.results import GRID_FILE, Results, as_line, read_grid
from spafit_hf.reproduce.work import Work
from spafit_hf.words import duration, figure, first_line

POLL_SECONDS = 5.0
"""Between two looks at cells that other processes have claimed."""


def run_grid(work: Work, backend: Local) -> Counter[str]:
    """Run every cell that has no result yet.

    Args:
        work: the grid, and its folder.
        backend: where the cells run; closed at the end.

    Returns:
        How many results are done, diverged and failed.

    Raises:
        ValueError: for a folder that holds another grid.
        OSError: for a full disk and the like; what is done stays, what is not is open.
    """
    results = Results(work.folder)
    write_grid(work, results)
    with Claims(results) as claims:
        run = Run(work, results, claims, backend)
        try:
            while left := run.left():
                run.submit(left)
                run.collect()
        except OSError as error:
            reason = f"no space is left for {work.folder}" if error.errno == errno.ENOSPC else str(error)
            kept = f"{len(results.refresh())} of {len(work.grid.wanted())} cells are done and stay"
            raise OSError(f"stopped: {reason}; {kept}. The same command goes on with the others.") from error
        finally:
            run.close()
    return Counter(result["status"] for result in results.known.values())


def write_grid(work: Work, results: Results) -> None:
    """Write `grid.json`: what is wanted, with the keys that are known by now.

    Raises:
        ValueError: where the folder holds a grid that this one does more than add cells to.
    """
    path = work.folder / GRID_FILE
    now = json.loads(json.dumps(work.description(results.refresh())))  # tuples as lists, as they are read
    with results.lock():
        if path.exists():
            before = read_grid(path)
            old, new = _fixed(before), _fixed(now)
            for name in sorted(old.keys() & new.keys()):
                if old[name] != new[name]:
                    raise ValueError(
                        f"{work.folder} holds a grid with another {name}, {old[name]} for {new[name]}; take another "
                        "--output, or what it was begun with."
                    )
            names = ("preset", "tasks", "methods", "seeds")
            gone = set(Grid.from_layers(before["settings"] | {name: before[name] for name in names}).wanted())
            gone -= set(work.grid.wanted())
            if gone:
                raise ValueError(
                    f"{work.folder} holds a grid with {len(gone)} cells that this one is without, such as "
                    f"{min(gone, key=str)}; name these too, or take another --output."
                )
        write_whole(path, as_line(now))


def _fixed(grid: dict[str, Any]) -> dict[str, Any]:
    """What no cell may be added to with another of."""
    made = grid["made_with"]
    rows = {f"data of {task}": mark for task, mark in made["data"].items()}
    settings = {name: value for name, value in grid["settings"].items() if not name.endswith("_rates")}
    return {"base": [grid["base"], made["base"]], "versions": made["versions"], **rows, **settings}


class Run:
    """The cells on their way, and what is shown of them: on a terminal one line, elsewhere a line per cell."""

    def __init__(self, work: Work, results: Results, claims: Claims, backend: Local) -> None:
        self.work, self.results, self.claims, self.backend = work, results, claims, backend
        self.pending: dict[Future[Attempt], Job] = {}
        self.tries: Counter[str] = Counter()
        self.open: set[Cell] = set()
        self.seconds = self.flops = 0.0
        self.terminal = sys.stderr.isatty()

    def left(self) -> list[tuple[Cell, Job | None]]:
        """The cells without a result."""
        known = self.results.refresh()
        left = [(cell, job) for cell, job in self.work.jobs(known) if job is None or job.key not in known]
        self.open = {cell for cell, _ in left}
        return left

    def submit(self, left: list[tuple[Cell, Job | None]]) -> None:
        """Hand in what can run, up to what the backend takes."""
        busy = {job.key for job in self.pending.values()}
        for cell, job in left:
            if len(self.pending) >= self.backend.slots:
                return
            if job is not None and job.key not in busy and self.claims.take(job.key):
                if self.terminal:
                    line = f"{self._count()} {cell}{self._time_left()}"
                    print(f"\r\033[K{line[:100]}", end="", file=sys.stderr, flush=True)
                self._submit(job)
        if not self.pending:
            time.sleep(POLL_SECONDS)  # others have the rest

    def _submit(self, job: Job) -> None:
        self.tries[job.key] += 1
        self.pending[self.backend.submit(job, self.work.data[job.cell.task])] = job

    def collect(self) -> None:
        """Write what has ended, at least one where some are on their way."""
        for future in wait(self.pending, POLL_SECONDS, FIRST_COMPLETED).done:
            job = self.pending[future]
            try:
                outcome = future.result()
            except self.backend.lost as error:
                if self.tries[job.key] < self.backend.tries:
                    del self.pending[future]
                    self._submit(job)
                    continue
                outcome = lost(job, self.work.data[job.cell.task], f"its worker was lost twice: {first_line(error)}")
            if isinstance(outcome, OSError):
                raise outcome
            self.results.add(outcome.result, outcome.rows)
            del self.pending[future]
            self.claims.give_up(job.key)
            self.results.write_lines()
            self._show(job.cell, outcome.result)
            if job.cell.stage == "search":
                write_grid(self.work, self.results)

    def close(self) -> None:
        """End the backend, and write what has ended since the reason to stop came up."""
        for future in self.pending:
            outcome = future.result() if future.done() and future.exception() is None else None
            if isinstance(outcome, Outcome):
                with suppress(OSError):  # the disk may be that reason
                    self.results.add(outcome.result, outcome.rows)
        self.backend.close()
        with suppress(OSError):
            self.results.write_lines()
        if self.terminal:
            print(file=sys.stderr)

    def _show(self, cell: Cell, result: dict[str, Any]) -> None:
        self.open.discard(cell)
        self.seconds += result["seconds"]
        self.flops += self.work.cost(cell)
        if not self.terminal:
            score = (result["best"] or {}).get("score")
            what = result["error"] or f"{result['figure']} {'undefined' if score is None else figure(score)}"
            print(f"{self._count()} {cell}: {what}, {result['seconds']:.0f} s{self._time_left()}", flush=True)

    def _count(self) -> str:
        total = len(self.work.grid.wanted())
        unsound = sum(result["status"] != "done" for result in self.results.known.values())
        return f"{total - len(self.open)}/{total}" + (f" ({unsound} failed or diverged)" if unsound else "")

    def _time_left(self) -> str:
        if not self.flops:
            return ""
        rate = self.seconds / self.flops / self.backend.slots
        return f"; {duration(sum(map(self.work.cost, self.open)) * rate)} left"
