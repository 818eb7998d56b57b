"""spafit reproduce on a Ray cluster of two nodes, of which workers and one node are killed."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from programs import python
from reproduce_run import kept, small_work

from spafit_hf.reproduce import backends
from spafit_hf.reproduce.backends import Local, OnRay, attempt
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
    # Ray's own are 15, behind all other tests that run meanwhile, and 15 s, until a node counts as lost.
    settings = {"worker_niceness": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {**node, **bare, "_system_config": settings}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


def test_a_cell_that_takes_each_worker_with_it_is_a_result(
    cluster: Any, base_folder: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = small_work(base_folder, glue, tmp_path, tasks=("cola",), methods=("full",), seeds=(0,))
    with pytest.raises(ValueError, match=r"the cluster has .*, and a cell needs .*'GPU': 0\.5"):
        OnRay(workers=0, cpus=1, gpus=0.5)
    monkeypatch.setattr(backends, "attempt", lambda job, data: os._exit(1))
    assert run_grid(work, OnRay(workers=1, cpus=1, gpus=0)) == {"failed": 1}
    (result,) = kept(tmp_path)
    assert "its worker was lost twice" in result["error"]


def held(gates: Path) -> Callable[[Any, Any], Any]:
    """`attempt`, whose answer waits until the gates are open; a file CELL-NODE-PID for each that came so far."""

    def attempt_and_wait(job: Any, data: Any) -> Any:
        answer = attempt(job, data)
        (gates / f"{job.key}-{ray.get_runtime_context().get_node_id()}-{os.getpid()}").touch()
        while not any((gates / name).exists() for name in (job.key, "all")):
            time.sleep(0.01)
        return answer

    return attempt_and_wait


def test_killed_workers_and_a_killed_node_change_no_result(
    cluster: Any, base_folder: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what: dict[str, Any] = {"tasks": ("stsb",), "seeds": (0, 1), "num_train_epochs": 1.0, "max_train_rows": 16}
    here, there, gates = (tmp_path / name for name in ("here", "there", "gates"))
    gates.mkdir()
    assert run_grid(small_work(base_folder, glue, here, **what), Local()) == {"done": 4}

    def came(count: int) -> list[list[str]]:
        """Cell, node and process of those that came to their gates, as soon as there are so many."""

        def look() -> list[list[str]]:
            return [path.name.split("-") for path in gates.glob("*-*-*")]

        wait_for(lambda: len(look()) >= count, f"{count} cells")
        return look()

    def interfere() -> str:
        """Two workers are killed, and with one of the two cells after theirs its whole node."""
        try:
            first = came(2)
            for _, _, pid in first:
                os.kill(int(pid), signal.SIGKILL)
            assert sorted(key for key, _, _ in came(4)) == sorted(2 * [key for key, _, _ in first])
            for key, _, _ in first:
                (gates / key).touch()
            (node,) = cluster.worker_nodes
            (lost,) = (key for key, where, _ in came(6) if where == node.node_id and not (gates / key).exists())
            cluster.remove_node(node, allow_graceful=False)
            return lost
        finally:
            (gates / "all").touch()

    monkeypatch.setattr(backends, "attempt", held(gates))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(interfere)
        backend = OnRay(workers=0, cpus=1, gpus=0)
        assert backend.slots == 2
        assert run_grid(small_work(base_folder, glue, there, **what), backend) == {"done": 4}
        lost = future.result()
    runs = Counter(key for key, _, _ in came(7))
    assert sorted(runs.values()) == [1, 2, 2, 2], "each that was lost is run once more"
    assert runs[lost] == 2
    assert kept(there) == kept(here)
