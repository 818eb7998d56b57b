"""Where cells run. A backend takes a job and gives a future; the files are written by the process that asked.

local       this process, one cell after the other
processes   several on this machine; one that dies is replaced, and the cell that it had runs once more
ray         tasks of a Ray cluster (pip install spafit-hf[ray]); Ray runs a lost one once more, where there is room
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

import torch

from spafit_hf.reproduce.cell import Job, Outcome, run_cell
from spafit_hf.run import RunData

Attempt: TypeAlias = "Outcome | OSError"
"""What a cell gave, or what stopped it that was not its own doing."""


def attempt(job: Job, data: RunData) -> Attempt:
    """`run_cell`, with what it raises as a value: Ray would dress it up."""
    try:
        return run_cell(job, data)
    except OSError as error:
        return error


class Backend(Protocol):
    """What runs cells."""

    tries: int
    """How often a cell is handed in whose worker is lost."""
    lost: tuple[type[Exception], ...]
    """What a future raises when its worker is lost."""

    @property
    def slots(self) -> int:
        """Cells at a time."""

    def submit(self, job: Job, data: RunData) -> Future[Attempt]:
        """Start a cell; not more than `slots` are on their way."""

    def close(self) -> None:
        """End the workers, whatever they do."""


class Local:
    """This process: a cell is done when `submit` returns."""

    slots = 1
    tries = 1
    lost: tuple[type[Exception], ...] = ()

    def submit(self, job: Job, data: RunData) -> Future[Attempt]:
        """Run a cell."""
        future: Future[Attempt] = Future()
        future.set_result(attempt(job, data))
        return future

    def close(self) -> None:
        """Nothing runs."""


class Processes:
    """Processes on this machine, which share its cores and have its GPUs in turn.

    Args:
        workers: how many.
    """

    tries = 2
    lost: tuple[type[Exception], ...] = (BrokenProcessPool,)

    def __init__(self, workers: int) -> None:
        self.slots = workers
        # Nothing is sent: a worker whose end of it finds the other one closed ends, however this process came to its.
        self._alive, self._lives = multiprocessing.Pipe()
        # A pool breaks as a whole, so that each has one worker.
        self._pools = [self._pool(index) for index in range(workers)]
        self._futures: list[Future[Attempt] | None] = [None] * workers

    def _pool(self, index: int) -> ProcessPoolExecutor:
        threads = max(1, torch.get_num_threads() // self.slots)
        return ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),  # CUDA and autograd do not survive a fork
            initializer=_start_worker,
            initargs=(threads, index, self._lives),
        )

    def submit(self, job: Job, data: RunData) -> Future[Attempt]:
        """Start a cell in a worker that has none."""
        index = next(at for at, future in enumerate(self._futures) if future is None or future.done())
        before = self._futures[index]
        if before is not None and isinstance(before.exception(), BrokenProcessPool):
            self._pools[index].shutdown()
            self._pools[index] = self._pool(index)
        self._futures[index] = future = self._pools[index].submit(attempt, job, data)
        return future

    def close(self) -> None:
        """End the workers."""
        if all(future is None or future.done() for future in self._futures):
            for pool in self._pools:
                pool.shutdown()
        self._alive.close()
        for pool in self._pools:
            pool.shutdown()
        self._lives.close()


def _start_worker(threads: int, index: int, lives: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all of a terminal's processes
    threading.Thread(target=_end_with, args=(lives,), daemon=True).start()
    torch.set_num_threads(threads)
    devices = [str(device) for device in range(torch.cuda.device_count())]
    if len(devices) > 1:
        mine = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(devices)).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = mine[index % len(mine)]


def _end_with(lives: Any) -> None:
    with suppress(EOFError, OSError):
        lives.recv()
    os._exit(1)


class OnRay:
    """Tasks of a Ray cluster: that of `RAY_ADDRESS`, one that runs here, or else a new one on this machine.

    Rows travel with the tasks; the package and a base that is a folder have to be on every node.

    Args:
        workers: cells at a time; 0 for what the cluster has room for, nodes that join later included.
        cpus: of a cell.
        gpus: of a cell; a fraction lets several share a GPU.

    Raises:
        ValueError: where Ray is not installed.
    """

    tries = 1  # Ray has run a lost cell once more by then

    def __init__(self, workers: int, cpus: float, gpus: float) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError("--backend ray needs Ray; install it with `pip install spafit-hf[ray]`.") from error
        self._ray: Any = ray
        self._workers, self._cpus, self._gpus = workers, cpus, gpus
        self._began = not ray.is_initialized()
        if self._began:
            ray.init(log_to_driver=False, logging_level="ERROR")
        lost = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError")
        self.lost: tuple[type[Exception], ...] = tuple(getattr(ray.exceptions, name) for name in lost)
        self._run = ray.remote(max_retries=1, num_cpus=cpus, num_gpus=gpus)(attempt)
        self._rows: dict[str, Any] = {}
        self._tasks: list[Any] = []

    @property
    def slots(self) -> int:
        """Cells at a time."""
        if self._workers:
            return self._workers
        there = self._ray.cluster_resources()
        needs = (("CPU", self._cpus), ("GPU", self._gpus))
        return max(1, min(int(there.get(name, 0) / need) for name, need in needs if need))

    def submit(self, job: Job, data: RunData) -> Future[Attempt]:
        """Hand a cell to the cluster."""
        if job.cell.task not in self._rows:
            self._rows[job.cell.task] = self._ray.put(data)
        task = self._run.remote(job, self._rows[job.cell.task])
        self._tasks.append(task)
        return task.future()

    def close(self) -> None:
        """Cancel what runs, and leave the cluster."""
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        if self._began:
            self._ray.shutdown()


def make(name: str, workers: int = 0, cpus: float = 1.0, gpus: float = 0.0) -> Backend:
    """The backend of a name.

    Args:
        name: local, processes or ray.
        workers: cells at a time; 0: two processes, or what a cluster has room for.
        cpus, gpus: of a cell on Ray.

    Raises:
        ValueError: for what cannot be.
    """
    if workers < 0 or cpus < 0 or gpus < 0 or not cpus + gpus:
        raise ValueError(
            f"workers, worker_cpus and worker_gpus are {workers}, {cpus:g} and {gpus:g}; none may be below 0, and a "
            "cell needs CPUs or GPUs."
        )
    if name == "local":
        return Local()
    return Processes(workers or 2) if name == "processes" else OnRay(workers, cpus, gpus)
