"""spafit reproduce: cells that are stopped, killed, claimed, lost or too many for the disk."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest
from programs import Program
from reproduce_run import kept, small_work

from spafit_hf.reproduce import claim, results
from spafit_hf.reproduce.backends import Attempt, Local
from spafit_hf.reproduce.cell import Job
from spafit_hf.reproduce.claim import Claims
from spafit_hf.reproduce.results import Results
from spafit_hf.reproduce.run import run_grid
from spafit_hf.reproduce.work import Work
from spafit_hf.run import RunData

SCRIPTS = Path(__file__).parent / "scripts"


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def four_cells(base: Path, glue: Path, output: Path, **more: Any) -> Work:
    return small_work(base, glue, output, **{"seeds": (0,), "num_train_epochs": 1.0, "max_train_rows": 16, **more})


@pytest.fixture(scope="module")
def whole(base_folder: Path, glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small grid that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("grid") / "whole"
    assert run_grid(four_cells(base_folder, glue, folder), Local()) == {"done": 4}
    return folder


@pytest.mark.slow
def test_ten_kills_at_random_moments_lose_and_double_nothing(base_folder: Path, glue: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = Program([SCRIPTS / "kills.py", base_folder, glue, tmp_path], env=environment(), log=log)
    assert program.wait() == 0, log.read_text()
    found = json.loads(log.read_text().splitlines()[-1])
    assert found["lost"] == 0
    assert found["equal"]
    assert found["lines"] == 6
    assert found["counts"] == sorted(found["counts"])
    assert found["files"] == ["result.json", "rows.safetensors"]
    assert ".part" not in found["states"]


class Stopping(Local):
    """Runs so many cells, and then what ends a process comes up within the next."""

    def __init__(self, cells: int, end: BaseException) -> None:
        self.cells, self.end = cells, end

    def submit(self, job: Job, data: RunData) -> Future[Attempt]:
        if not self.cells:
            raise self.end
        self.cells -= 1
        return super().submit(job, data)


def test_a_stopped_grid_goes_on(whole: Path, base_folder: Path, glue: Path, tmp_path: Path) -> None:
    work = four_cells(base_folder, glue, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_grid(work, Stopping(2, KeyboardInterrupt()))
    assert len(kept(tmp_path)) == 2
    assert len(list((tmp_path / "cells").iterdir())) == 2  # of the third nothing is left
    with pytest.raises(
        OSError, match=r"stopped: the cable; 3 of 4 cells are done and stay\. The same command goes on"
    ):
        run_grid(work, Stopping(1, OSError("the cable")))
    assert run_grid(work, Local()) == {"done": 4}
    assert kept(tmp_path) == kept(whole)


def test_a_full_disk_fails_no_cell(
    whole: Path, base_folder: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = four_cells(base_folder, glue, tmp_path)
    sync, written = os.fsync, []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(results.os, "fsync", full)
        with pytest.raises(OSError, match=r"no space is left for .*; [1-3] of 4 cells are done and stay"):
            run_grid(work, Local())
    states = {json.loads(path.read_text())["status"] for path in tmp_path.glob("cells/*/result.json")}
    assert states == {"done"}
    assert {path.name for path in tmp_path.glob("cells/*/*")} <= {"result.json", "rows.safetensors"}
    assert run_grid(work, Local()) == {"done": 4}
    assert kept(tmp_path) == kept(whole)


GRIDS = """
import sys
from pathlib import Path
from spafit_hf.cli import main
from spafit_hf.reproduce.backends import Processes
from spafit_hf.reproduce.run import run_grid
from test_reproduce_run import four_cells
base, glue, output, *flags = sys.argv[1:]
run_grid(four_cells(base, glue, Path(output)), Processes(2))
main(flags)
"""


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_none_outlives_its_grid(
    whole: Path, base_folder: Path, glue: Path, tmp_path: Path
) -> None:
    """Of two grids in one process, which imports for its workers once, the first ends and the second is killed."""
    first, second = tmp_path / "first", tmp_path / "second"
    flags = {"base": base_folder, "data_dir": glue, "output": second, "tasks": "cola", "methods": "full",
             "learning_rates": "1e-3", "num_train_epochs": 500, "backend": "processes", "workers": 1}  # fmt: skip
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    program = Program(["-c", GRIDS, base_folder, glue, first, "reproduce", *words], env=environment())

    def workers() -> list[psutil.Process]:
        """Children of the child that has imported what they need."""
        return [worker for server in psutil.Process(program.process.pid).children() for worker in server.children()]

    def wait_for(condition: Callable[[], Any]) -> None:
        while not condition():
            assert not program.ended
            time.sleep(0.02)

    wait_for(lambda: list(first.glob("cells/*/result.json")))
    found = workers()
    found[0].kill()
    wait_for(lambda: list(second.glob("cells/*/claim")))
    assert kept(first) == kept(whole)
    assert not any(worker.is_running() for worker in found)
    wait_for(workers)
    found = workers()
    program.kill()
    assert not psutil.wait_procs(found, timeout=60)[1]


# ---- claims ---------------------------------------------------------------------------------------------------------


def test_a_cell_has_one_owner(tmp_path: Path) -> None:
    found = Results(tmp_path)
    with Claims(found) as claims:
        assert claims.take("cell")
        claimed = found.cell("cell") / "claim"
        assert json.loads(claimed.read_text()) == {"host": platform.node(), "pid": os.getpid()}
        # Our parent lives, and so does whoever holds a cell on another host and has touched it.
        for owner in ({"host": platform.node(), "pid": os.getppid()}, {"host": "elsewhere", "pid": 1}):
            claimed.write_text(json.dumps(owner))
            assert not claims.take("cell")
        claims.give_up("cell")
        assert claimed.exists(), "another's claim was given up"


@pytest.mark.parametrize("dead", ["of a process that has ended", "of a host that is silent", "half written"])
def test_a_dead_claim_is_taken_over_and_its_leavings_go(dead: str, tmp_path: Path) -> None:
    found = Results(tmp_path)
    place = found.cell("cell")
    place.mkdir()
    (place / "rows.safetensors").write_bytes(b"of an earlier try")
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = "elsewhere" if "host" in dead else platform.node()
    text = json.dumps({"host": host, "pid": ended.pid})
    (place / "claim").write_text(text[:10] if "half" in dead else text)
    if "host" in dead:
        long_ago = time.time() - claim.STALE_SECONDS - 1
        os.utime(place / "claim", (long_ago, long_ago))
    with Claims(found) as claims:
        assert claims.take("cell")
        assert [path.name for path in place.iterdir()] == ["claim"]
    assert not place.exists()


def test_a_dead_claim_beside_a_result_goes(tmp_path: Path) -> None:
    found = Results(tmp_path)
    for name, owner in (("done", 2**22 + 1), ("being written", os.getppid())):
        found.cell(name).mkdir()
        (found.cell(name) / "result.json").write_text("{}")
        (found.cell(name) / "claim").write_text(json.dumps({"host": platform.node(), "pid": owner}))
    with Claims(found):
        assert [path.name for path in found.cell("done").iterdir()] == ["result.json"]
        assert (found.cell("being written") / "claim").exists()


def test_claims_are_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.01)
    found = Results(tmp_path)
    with Claims(found) as claims:
        claims.take("cell")
        path = found.cell("cell") / "claim"
        os.utime(path, (0, 0))
        while not path.stat().st_mtime:
            time.sleep(0.01)


# ---- the folder -----------------------------------------------------------------------------------------------------


def test_another_grid_may_only_add_cells(whole: Path, base_folder: Path, glue: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    shutil.copytree(whole, folder)

    def work(**more: Any) -> Work:
        return four_cells(base_folder, glue, folder, **more)

    with pytest.raises(ValueError, match=r"holds a grid with another num_train_epochs, 1\.0 for 3\.0"):
        run_grid(work(num_train_epochs=3.0), Local())
    with pytest.raises(
        ValueError, match=r"holds a grid with 2 cells that this one is without, such as stsb .* seed 0"
    ):
        run_grid(work(tasks=("cola",)), Local())
    before = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*")}
    assert run_grid(work(methods=("spafit-4-9-II", "full", "bitfit")), Local()) == {"done": 6}
    assert before.items() <= {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*")}.items()
    again = work()
    for file in (folder / "grid.json", next(folder.glob("cells/*/result.json"))):
        file.write_text('{"format"')
        with pytest.raises(ValueError, match=rf"{file.name} is not JSON .*Remove the file: spafit reproduce makes it"):
            run_grid(again, Local())
        (folder / "grid.json").unlink(missing_ok=True)


def test_a_worker_with_other_versions_stops_the_grid(
    base_folder: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = small_work(base_folder, glue, tmp_path)
    monkeypatch.setattr("spafit_hf.reproduce.cell.key_versions", lambda: {"torch": "1.0"})
    with pytest.raises(OSError, match=r"this worker has .*1\.0.*; 0 of 8 cells are done"):
        run_grid(work, Local())
