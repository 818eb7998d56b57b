"""Whole programs in processes of their own, without each importing torch again: they are forked from one that has.

    test --argv, folder, environment--> fork server: torch and what else knows no Hub --fork--> a `fresh` program
                                             |fork
                                        second one: transformers, this package --------fork--> any other program

What reads the environment when it is imported (transformers, huggingface_hub, this package) a fresh program imports
itself, as new as in a process that was started; the others have it as it is in the environment of the tests.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import torch

SERVER = multiprocessing.get_context("forkserver")
PRELOADED = """torch torch._dynamo torch._inductor torch.distributed.fsdp sklearn.metrics scipy.stats pandas
pyarrow.parquet matplotlib.figure PIL.Image yaml jinja2 requests dill multiprocess"""
SERVER.set_forkserver_preload(PRELOADED.split())
IN_THE_SECOND = """datasets transformers.trainer transformers.models.bert.modeling_bert spafit_hf.cli
spafit_hf.predictor spafit_hf.reproduce.run spafit_hf.reproduce.backends"""
ENVIRONMENT = dict(os.environ)  # without what single tests put there
FORK = multiprocessing.get_context("fork")
LIMIT = 180
"""Seconds for one program."""


class Program:
    """One that runs.

    Args:
        argv: a script's path and its arguments; ["-m", module, ...]; ["-c", code, ...].
        folder: where it runs, that of the test by default.
        env: its whole environment, that of the test by default.
        log: what it prints is added to this file; by default it goes where the test's goes.
        pipes: connections that take the place of standard input and output, by their numbers 0 and 1.
        fresh: whether it imports transformers and this package itself, in its own environment.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        folder: Path | None = None,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        pipes: Mapping[int, Connection] | None = None,
        fresh: bool = False,
    ) -> None:
        self.log = log
        words = [os.fspath(word) for word in argv]
        given = (words, str(folder or Path.cwd()), dict(os.environ if env is None else env), log, dict(pipes or {}))
        self.process: Any = SERVER.Process(target=run, args=given) if fresh else _Second(given)
        self.process.start()

    def wait(self, seconds: float = LIMIT) -> int | None:
        """Its exit status; it is killed where it has none in time."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill()
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    @property
    def ended(self) -> bool:
        return self.process.exitcode is not None


class _Second:
    """A process of the second server; as much of `multiprocessing.Process` as a program needs."""

    def __init__(self, given: tuple[Any, ...]) -> None:
        self._given = given
        self._exitcode: int | None = None

    def start(self) -> None:
        *rest, log, pipes = self._given
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.connect(_second())
        with contextlib.nullcontext() if log is None else open(log, "ab") as sink:
            files = [0, 1, 2] if sink is None else [0, sink.fileno(), sink.fileno()]
            for number, pipe in pipes.items():
                files[number] = pipe.fileno()
            socket.send_fds(self._line, [json.dumps(rest).encode()], files)
        self.pid = int(self._line.recv(64))

    def join(self, seconds: float | None = None) -> None:
        if self._exitcode is None:
            self._line.settimeout(seconds)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                self._exitcode = int(self._line.recv(64))

    @property
    def exitcode(self) -> int | None:
        self.join(0)
        return self._exitcode

    def kill(self) -> None:
        if self.exitcode is None:
            os.kill(self.pid, signal.SIGKILL)


@functools.cache
def _second() -> str:
    """Where the second server listens, which is started with the first program."""
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "second")
    alive, line = Pipe(duplex=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        SERVER.Process(target=_serve, args=(listener, alive)).start()
    atexit.register(line.close)  # at which it ends
    atexit.register(shutil.rmtree, folder)
    return path


def _serve(listener: socket.socket, alive: Connection) -> None:
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    for name in IN_THE_SECOND.split():
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    running: dict[Any, tuple[Any, socket.socket]] = {}  # by its sentinel, and by who waits for it
    while True:
        for ready in wait([alive, listener, *running]):
            if ready is alive:
                return
            if ready is listener:
                waiting, _ = listener.accept()
                content, files, *_ = socket.recv_fds(waiting, 2**20, 3)
                pipes = {number: Connection(file) for number, file in enumerate(files)}
                process = FORK.Process(target=run, args=(*json.loads(content), None, pipes))
                process.start()
                for pipe in pipes.values():
                    pipe.close()
                waiting.send(str(process.pid).encode())
                running[process.sentinel] = running[waiting] = process, waiting
            elif ready in running:
                process, waiting = running[ready]
                if ready is waiting:  # no longer
                    process.kill()
                process.join()
                del running[process.sentinel], running[waiting]
                with waiting, contextlib.suppress(OSError):
                    waiting.send(str(process.exitcode).encode())


CLIENT = """#!{python} -SE
import json, os, socket, sys
line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
line.connect({path!r})
words = {first} + (sys.argv[2:] if sys.argv[1] == "-u" else sys.argv[1:])
socket.send_fds(line, [json.dumps([words, os.getcwd(), dict(os.environ)]).encode()], [0, 1, 2])
line.recv(64)
code = int(line.recv(64))
os._exit(code if code >= 0 else 128 - code)
"""


def python(folder: Path, *first: str) -> Path:
    """A file in a folder to run in the place of Python: its programs are forked from the second server.

    Args:
        first: what every command line begins with.
    """
    file = folder / "python"
    file.write_text(CLIENT.format(python=sys.executable, path=_second(), first=[*first]))
    file.chmod(0o755)
    return file


def ranks(count: int, argv: Sequence[str | os.PathLike[str]], folder: Path, env: Mapping[str, str], log: Path):
    """`count` processes of one program that find each other, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    found = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        Program(argv, folder, {**env, **found, "RANK": str(rank), "LOCAL_RANK": str(rank)}, log)
        for rank in range(count)
    ]


def run(argv: list[str], folder: str, env: dict[str, str], log: Path | None, pipes: dict[int, Connection]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", "1")))
    if log is not None:
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
    for number, pipe in pipes.items():
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))  # multiprocessing has put /dev/null there
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)))  # as of a process of its own
    kind, *rest = argv if argv[0] in ("-m", "-c") else ("", *argv)
    given = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [*given, *([] if kind else [os.path.dirname(rest[0])])]
    sys.argv = rest
    try:
        if kind == "-c":
            exec(compile(rest[0], "<program>", "exec"), {"__name__": "__main__"})
        elif kind == "-m":
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(rest[0], run_name="__main__")
    finally:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        sys.stderr.flush()
