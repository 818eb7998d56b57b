"""Where cells run. A backend takes a job and gives a future; the files are written by the process that asked.

local       this process, one cell after the other
processes   several on this machine; one that dies is replaced, and the cell that it had runs once more
ray         tasks of a Ray cluster (pip install spafit-hf[ray]); Ray runs a lost one once more, where there is room
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, TypeAlias

import torch

from spafit_hf.reproduce.cell import Job, Outcome, run_cell
from spafit_hf.reproduce.grid import PROCESSES, Grid
from spafit_hf.run import RunData

Attempt: TypeAlias = "Outcome | OSError"
"""What a cell gave, or what stopped it that was not its own doing."""


def attempt(job: Job, data: RunData) -> Attempt:
    """`run_cell`, with what it raises as a value: Ray would dress it up."""
    try:
        return run_cell(job, data)
    except OSError as error:
        return error


class Local:
    """This process: a cell is done when `submit` returns. The other backends are of this form."""

    tries = 1
    """How often a cell is handed in whose worker is lost."""
    lost: tuple[type[Exception], ...] = ()
    """What a future raises when its worker is lost."""

    @property
    def slots(self) -> int:
        """Cells at a time."""
        return 1

    def submit(self, job: Job, data: RunData) -> Future[Attempt]:
        """Start a cell; not more than `slots` are on their way."""
        future: Future[Attempt] = Future()
        future.set_result(attempt(job, data))
        return future

    def close(self) -> None:
        """End the workers, whatever they do."""


class Processes(Local):
    """Processes on this machine, which share its cores and have its GPUs in turn."""

    tries = 2
    lost = (BrokenProcessPool,)

    def __init__(self, workers: int) -> None:
        # Nothing is sent: a worker that finds the other end closed ends, however this process came to its own end.
        self._alive, self._lives = multiprocessing.Pipe()
        self._threads = max(1, torch.get_num_threads() // workers)
        # A pool breaks as a whole, so that each has one worker.
        self._pools = [self._pool(index) for index in range(workers)]
        self._futures: list[Future[Attempt] | None] = [None] * workers

    def _pool(self, index: int) -> ProcessPoolExecutor:
        how = (self._threads, index, self._lives)
        return ProcessPoolExecutor(1, _context(), initializer=_start_worker, initargs=how)

    @property
    def slots(self) -> int:
        """Cells at a time."""
        return len(self._pools)

    def submit(self, job: Job, data: RunData) -> Future[Attempt]:
        """Start a cell in a worker that has none."""
        index = next(at for at, future in enumerate(self._futures) if future is None or future.done())
        before = self._futures[index]
        if before is not None and before.exception() is not None:
            self._pools[index] = self._pool(index)
        self._futures[index] = future = self._pools[index].submit(attempt, job, data)
        return future

    def close(self) -> None:
        """End the workers, those without a cell in peace."""
        for pool, future in zip(self._pools, self._futures, strict=True):
            if future is None or future.done():
                pool.shutdown()
        self._alive.close()
        for pool in self._pools:
            pool.shutdown()
        self._lives.close()


def _context() -> Any:
    """Workers are forked from a process that has imported what they need and run nothing of it: CUDA and autograd do
    not survive a fork. Where there is no such process, on Windows, each imports for itself."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker(threads: int, index: int, lives: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all of a terminal's processes
    threading.Thread(target=_end_with, args=(lives,), daemon=True).start()
    torch.set_num_threads(threads)
    if (count := torch.cuda.device_count()) > 1:
        mine = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = mine[index % count]


def _end_with(lives: Any) -> None:
    with suppress(EOFError, OSError):
        lives.recv()
    os.kill(os.getpid(), signal.SIGKILL)  # from a thread, whatever the others do


class OnRay(Local):
    """Tasks of a Ray cluster: that of `RAY_ADDRESS`, one that runs here, or else a new one on this machine.

    Rows travel with the tasks; the package and a base that is a folder have to be on every node.

    Args:
        workers: cells at a time; 0 for what the cluster has room for, nodes that join later included.
        cpus, gpus: of a cell; a fraction lets several share a GPU.

    Raises:
        ValueError: where Ray is not installed, or the cluster has no room for a cell.
    """

    # tries stays 1: Ray has run a lost cell once more by then

    def __init__(self, workers: int, cpus: float, gpus: float) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError("--backend ray needs Ray; install it with `pip install spafit-hf[ray]`.") from error
        self._ray: Any = ray
        self._workers, self._needs = workers, {"CPU": cpus, "GPU": gpus}
        self._began = not ray.is_initialized()
        if self._began:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        lost = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError")
        self.lost = tuple(getattr(ray.exceptions, name) for name in lost)
        self._run = ray.remote(max_retries=1, num_cpus=cpus, num_gpus=gpus)(attempt)
        self._rows: dict[str, Any] = {}
        self._tasks: list[Any] = []
        if self.slots < 1:  # of an autoscaler, workers says how many
            raise ValueError(f"the cluster has {ray.cluster_resources()}, and a cell needs {self._needs}.")

    @property
    def slots(self) -> int:
        """Cells at a time."""
        there = self._ray.cluster_resources()
        room = (int(there.get(name, 0) / need) for name, need in self._needs.items() if need)
        return self._workers or min(room, default=1)

    def submit(self, job: Job, data: RunData) -> Future[Attempt]:
        """Hand a cell to the cluster."""
        if job.cell.task not in self._rows:
            self._rows[job.cell.task] = self._ray.put(data)
        self._tasks.append(self._run.remote(job, self._rows[job.cell.task]))
        return self._tasks[-1].future()

    def close(self) -> None:
        """Cancel what runs, and leave the cluster."""
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        if self._began:
            self._ray.shutdown()


def make(grid: Grid) -> Local:
    """The backend that a grid's flags name."""
    if grid.backend == "local":
        return Local()
    if grid.backend == "processes":
        return Processes(grid.workers or PROCESSES)
    return OnRay(grid.workers, grid.worker_cpus, grid.worker_gpus)
