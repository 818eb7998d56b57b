"""A grid that is killed at random moments, ten times, beside one that is not; prints what became of their results.

    python kills.py BASE GLUE FOLDER

Each try is a fork of this process, which has imported everything and computed nothing: a second, not ten.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from reproduce_run import kept, small_work

from spafit_hf.reproduce.backends import Local
from spafit_hf.reproduce.run import run_grid

KILLS = 10


def start(base: Path, glue: Path, folder: Path) -> int:
    """A process that runs the grid."""
    pid = os.fork()
    if not pid:
        torch.set_num_threads(1)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        rates = {"learning_rates": {"full": (5e-3,)}, "search_rates": {"others": (1e-3, 5e-3)}}
        less = {"tasks": ("stsb",), "num_train_epochs": 1.0, "max_train_rows": 16}
        run_grid(small_work(base, glue, folder, **rates, **less), Local())
        os._exit(0)
    return pid


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """Key -> what tells a file from one that was written again."""
    files = folder.glob("cells/*/result.json")
    return {path.parent.name: (found.st_ino, found.st_mtime_ns) for path in files for found in [path.stat()]}


def main(base: Path, glue: Path, folder: Path) -> None:
    begin = time.monotonic()
    assert os.waitpid(start(base, glue, folder / "whole"), 0)[1] == 0
    whole = time.monotonic() - begin
    draw = random.Random()
    lost, counts, done = 0, [], {}
    for _ in range(KILLS):
        pid = start(base, glue, folder / "killed")
        time.sleep(draw.uniform(0, 0.4 * whole))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        after = finished(folder / "killed")
        lost += sum(after.get(key) != value for key, value in done.items())
        done = after
        counts.append(len(done))
    assert os.waitpid(start(base, glue, folder / "killed"), 0)[1] == 0
    found = {
        "lost": lost,
        "counts": counts,
        "equal": kept(folder / "whole") == kept(folder / "killed"),
        "lines": len(kept(folder / "killed")),
        "files": sorted({path.name for path in folder.glob("killed/cells/*/*")}),
        "states": sorted(path.suffix for path in folder.glob("killed/states/*")),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
