"""Where cells run. Each backend takes a job and gives a future; the files are written by the process that asked.

local       this process, one cell after the other
processes   several on this machine; one that dies is replaced, and the cell that it had runs once more
ray         the tasks of a Ray cluster (pip install spafit-hf[ray]); Ray runs a lost one once more, elsewhere
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from spafit_hf.reproduce.cell import Job, Outcome, run_cell
from spafit_hf.run import RunData


class Backend(Protocol):
    """What runs cells."""

    tries: int
    """How often a cell is handed in that is lost with its worker."""
    lost: tuple[type[Exception], ...]
    """What a future raises when its worker is gone."""

    @property
    def slots(self) -> int:
        """Cells that it takes at a time."""
        ...

    def submit(self, job: Job, data: RunData) -> Future[Outcome]:
        """Start a cell."""
        ...

    def close(self) -> None:
        """End the workers, whatever they do."""
        ...


class Local:
    """This process: `submit` returns when the cell is done."""

    slots = 1
    tries = 1
    lost: tuple[type[Exception], ...] = ()

    def submit(self, job: Job, data: RunData) -> Future[Outcome]:
        """Run the cell."""
        future: Future[Outcome] = Future()
        try:
            future.set_result(run_cell(job, data))
        except OSError as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Nothing runs."""
