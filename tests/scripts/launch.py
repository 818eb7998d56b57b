"""torchrun or `accelerate launch`, whose workers are forked from it and not started: none imports everything anew.

python launch.py MODULE ARGUMENT...     MODULE is torch.distributed.run or accelerate.commands.launch
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Sequence
from subprocess import TimeoutExpired
from typing import Any

import programs
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler


class Forked:
    """As much of `subprocess.Popen` as torchrun needs."""

    def __init__(self, args: Sequence[str], env: dict[str, str], **_others: Any) -> None:
        self.process = programs.FORK.Process(target=_worker, args=(args, env))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        self.process.join(seconds)
        if self.process.exitcode is None:
            raise TimeoutExpired("a worker", seconds or 0)
        return self.process.exitcode


def _worker(args: Sequence[str], env: dict[str, str]) -> None:
    os.setsid()  # torchrun ends a worker with all of its group
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _python, _unbuffered, *script = args
    programs.run(script, os.getcwd(), env, None, {})


if __name__ == "__main__":
    subprocess_handler.Popen = Forked  # type: ignore[misc,assignment]
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
