"""spafit reproduce on a Ray cluster of two nodes, of which workers and one node are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from programs import python
from reproduce_run import kept, small_work

from spafit_hf.reproduce.backends import Local, OnRay
from spafit_hf.reproduce.run import run_grid

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install spafit-hf[ray])")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of two nodes, whose workers are forks of one process that has imported what a cell needs; the last test takes
    one of the nodes."""
    from ray.cluster_utils import Cluster

    worker = str(Path(__file__).parent / "scripts" / "ray_worker.py")
    node = {"num_cpus": 1, "setup_worker_path": str(python(tmp_path_factory.mktemp("ray"), worker))}
    bare = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    cluster = Cluster(initialize_head=True, head_node_args={**node, **bare})
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def at_work() -> list[int]:
    """Ray's workers below this process that have a cell."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [each.pid] * ("ray::attempt" in " ".join(each.cmdline()))
    return found


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


def test_a_cell_that_takes_each_worker_with_it_is_a_result(
    cluster: Any, base_folder: Path, glue: Path, tmp_path: Path
) -> None:
    work = small_work(base_folder, glue, tmp_path, tasks=("cola",), methods=("full",), seeds=(0,))
    with pytest.raises(ValueError, match=r"the cluster has .*, and a cell needs .*'GPU': 0\.5"):
        OnRay(workers=0, cpus=1, gpus=0.5)
    backend = OnRay(workers=1, cpus=1, gpus=0)
    # Without the cell: a worker that only ends has no need of all that reading one imports.
    ending = ray.remote(max_retries=1, num_cpus=1)(lambda: os._exit(1))
    backend._run = SimpleNamespace(remote=lambda job, data: ending.remote())
    assert run_grid(work, backend) == {"failed": 1}
    (result,) = kept(tmp_path)
    assert "its worker was lost twice" in result["error"]


def test_killed_workers_and_a_killed_node_change_no_result(
    cluster: Any, base_folder: Path, glue: Path, tmp_path: Path
) -> None:
    what: dict[str, Any] = {
        "tasks": ("stsb",),
        "seeds": tuple(range(5)),
        "num_train_epochs": 1.0,
        "max_train_rows": 16,
    }
    here, there = tmp_path / "here", tmp_path / "there"
    assert run_grid(small_work(base_folder, glue, here, **what), Local()) == {"done": 10}

    def kill(workers: list[int]) -> None:
        """Kill them, and wait for the cells that were on their way: each is run once more, and not twice."""
        claimed = [path.parent for path in there.glob("cells/*/claim")]
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: all((place / "result.json").exists() for place in claimed), "lost cells are not run again")

    def interfere() -> int:
        kill(wait_for(lambda: len(found := at_work()) == 2 and found, "two cells at a time"))
        kill(wait_for(at_work, "a cell")[:1])
        left = 10 - len(list(there.glob("cells/*/result.json")))
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        return left

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(interfere)
        backend = OnRay(workers=0, cpus=1, gpus=0)
        assert backend.slots == 2
        assert run_grid(small_work(base_folder, glue, there, **what), backend) == {"done": 10}
        assert future.result() > 2, "the node was lost when all was done"
    assert kept(there) == kept(here)
