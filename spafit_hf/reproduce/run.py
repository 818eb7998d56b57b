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

from spafit_hf.reproduce.backends import Attempt, Backend
from spafit_hf.reproduce.cell import Job, Outcome, lost
from spafit_hf.reproduce.claim import Claims
from spafit_hf.reproduce.grid import Cell, Grid
from spafit_hf.reproduce.results import GRID_FILE, Results, as_line, write_whole
from spafit_hf.reproduce.work import Work
from spafit_hf.words import duration, figure, first_line, listing

POLL_SECONDS = 5.0
"""Between two looks at cells that other processes have claimed."""


def run_grid(work: Work, backend: Backend) -> Counter[str]:
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
        run = _Run(work, results, claims, backend)
        try:
            while left := run.left():
                run.submit(left)
                run.collect()
        except OSError as error:
            raise _stopped(error, work, results) from error
        finally:
            run.close()
    return Counter(result["status"] for result in results.known.values())


class _Run:
    def __init__(self, work: Work, results: Results, claims: Claims, backend: Backend) -> None:
        self.work, self.results, self.claims, self.backend = work, results, claims, backend
        self.pending: dict[Future[Attempt], Job] = {}
        self.tries: Counter[str] = Counter()
        self.progress = Progress(work)

    def left(self) -> list[tuple[Cell, Job | None]]:
        known = self.results.refresh()
        return [(cell, job) for cell, job in self.work.jobs(known) if job is None or job.key not in known]

    def submit(self, left: list[tuple[Cell, Job | None]]) -> None:
        self.progress.left = [cell for cell, _ in left]
        busy = {job.key for job in self.pending.values()}
        for _, job in left:
            if len(self.pending) >= self.backend.slots:
                return
            if job is not None and job.key not in busy and self.claims.take(job.key):
                self.progress.started(job.cell, self.backend.slots)
                self._submit(job)
        if not self.pending:
            time.sleep(POLL_SECONDS)  # others have the rest

    def _submit(self, job: Job) -> None:
        self.tries[job.key] += 1
        self.pending[self.backend.submit(job, self.work.data[job.cell.task])] = job

    def collect(self) -> None:
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
            self.progress.finished(job.cell, outcome.result, self.backend.slots)
            if job.cell.stage == "search":
                write_grid(self.work, self.results)

    def close(self) -> None:
        self.progress.end()
        for future in self.pending:  # what has ended since the reason to stop came up
            outcome = future.result() if future.done() and future.exception() is None else None
            if isinstance(outcome, Outcome):
                with suppress(OSError):  # the disk may be that reason
                    self.results.add(outcome.result, outcome.rows)
        self.backend.close()
        with suppress(OSError):
            self.results.write_lines()


def _stopped(error: OSError, work: Work, results: Results) -> OSError:
    done = len(results.refresh())
    reason = f"no space is left for {work.folder}" if error.errno == errno.ENOSPC else str(error)
    kept = f"{done} of {len(work.grid.wanted())} cells are done and stay"
    return OSError(f"stopped: {reason}; {kept}. The same command goes on with the others.")


def write_grid(work: Work, results: Results) -> None:
    """Write `grid.json`: what is wanted, with the keys that are known by now.

    Raises:
        ValueError: where the folder holds a grid that this one does more than add cells to.
    """
    path = work.folder / GRID_FILE
    found = work.description(results.refresh())
    found = json.loads(json.dumps(found))  # tuples as lists, as they are read
    with results.lock():
        if path.exists():
            _check_adds(json.loads(path.read_text(encoding="utf-8")), found, work)
        write_whole(path, as_line(found))


def _check_adds(before: dict[str, Any], now: dict[str, Any], work: Work) -> None:
    rates = ("learning_rates", "search_rates")
    for name in ("base", "made_with", "settings"):
        old, new = before[name], now[name]
        changed = [key for key in new if key not in rates and old.get(key) != new[key]] if name != "base" else []
        if name == "made_with" and changed == ["data"] and old["data"].items() <= new["data"].items():
            continue  # of more tasks
        if changed or (name == "base" and old != new):
            what = listing([f"{key} {old.get(key)} for {new[key]}" for key in changed] or [f"{old} for {new}"])
            raise ValueError(
                f"{work.folder} holds a grid of another {name}: {what}. Take another --output, or what it was begun "
                "with."
            )
    grid = {name: value for name, value in before.items() if name in ("preset", "tasks", "methods", "seeds")}
    wanted = Grid.from_layers({**grid, **before["settings"]}).wanted()
    gone = [cell for cell in wanted if cell not in set(work.grid.wanted())]
    if gone:
        raise ValueError(
            f"{work.folder} holds a grid with {len(gone)} cells that this one is without, such as {gone[0]}; name "
            "these too, or take another --output."
        )


class Progress:
    """One line on a terminal; elsewhere a line per cell.

    Args:
        work: whose cells are counted.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.left: list[Cell] = []
        """Cells without a result, as of the last look."""
        self._failed = 0
        self._spent = self._cost = 0.0
        self._terminal = sys.stderr.isatty()

    def started(self, cell: Cell, slots: int) -> None:
        """Show what runs."""
        if self._terminal:
            print(f"\r\033[K{self._count()} {cell}{self._time_left(slots)}"[:120], end="", file=sys.stderr, flush=True)

    def finished(self, cell: Cell, result: dict[str, Any], slots: int) -> None:
        """Count a cell, and say how long the others may take."""
        self.left = [each for each in self.left if each != cell]
        self._failed += result["status"] != "done"
        self._spent += result["seconds"]
        self._cost += self.work.cost(cell)
        if not self._terminal:
            score = (result["best"] or {}).get("score")
            what = result["error"] or f"{result['figure']} {'undefined' if score is None else figure(score)}"
            print(f"{self._count()} {cell}: {what}, {result['seconds']:.0f} s{self._time_left(slots)}", flush=True)

    def _count(self) -> str:
        total = len(self.work.grid.wanted())
        return f"{total - len(self.left)}/{total}" + (f" ({self._failed} failed or diverged)" if self._failed else "")

    def _time_left(self, slots: int) -> str:
        if not self._cost:
            return ""
        return f"; {duration(sum(map(self.work.cost, self.left)) * self._spent / self._cost / slots)} left"

    def end(self) -> None:
        """Leave the line."""
        if self._terminal:
            print(file=sys.stderr)
