"""Client code in a process of its own, because huggingface_hub reads its environment when it is imported.

    test --source, arguments--> worker (HF_ENDPOINT, HF_HOME, HF_TOKEN set) --result or exception--> test

One worker serves many calls, so that importing is paid once; `HubClient.fresh` starts one for a single call.
"""

from __future__ import annotations

import json
import os
import textwrap
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from programs import Program

TESTS = Path(__file__).parents[1]
#: Anything of the caller's own that would send a worker to another Hub, or offline.
INHERITED = ("HF_", "HUGGING", "TRANSFORMERS_")


class ClientFailure(Exception):
    """An exception in the worker.

    Attributes:
        kind: names of its class and that class's bases, such as {"HfHubHTTPError", "OSError", ...}.
        chain: messages of it and its causes.
        trace: its traceback, printed.
    """

    def __init__(self, kind: list[str], chain: list[str], trace: str) -> None:
        super().__init__(f"{kind[0]}: {chain[0]}")
        self.kind = kind
        self.chain = chain
        self.trace = trace


class HubClient:
    """A Python process whose environment points at a test Hub.

    Args:
        endpoint: of the Hub.
        home: a folder for HF_HOME: cache and login.
        token: for HF_TOKEN, or None to be nobody.
        xet: whether hf_xet may be used.
        env: more variables; None removes one.
    """

    def __init__(
        self, endpoint: str, home: Path, *, token: str | None = None, xet: bool = False, **env: str | None
    ) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(INHERITED)}
        clean |= {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "PYTHONUNBUFFERED": "1",
        }
        clean |= {"HF_TOKEN": token} if token else {}
        clean |= {} if xet else {"HF_HUB_DISABLE_XET": "1"}
        clean |= {name: value for name, value in env.items() if value is not None}
        for name in (name for name, value in env.items() if value is None):
            clean.pop(name, None)
        self.env = clean
        self._worker: _Worker | None = None

    def __call__(self, source: str, **arguments: Any) -> Any:
        """Runs `source` (its arguments are its variables) and returns what it assigned to `result`, through JSON.

        Raises:
            ClientFailure: for whatever `source` raised.
        """
        if self._worker is None or self._worker.program.ended:
            self._worker = _Worker(self.env)
        call = {"source": textwrap.dedent(source), "arguments": arguments}
        answer = self._worker.ask(json.dumps(call, default=str))
        if not answer:
            raise ClientFailure(["Died"], [f"the worker ended with {self._worker.program.wait()}"], "")
        reply = json.loads(answer)
        if "failure" in reply:
            raise ClientFailure(**reply["failure"])
        return reply["result"]

    def fresh(self, source: str, **arguments: Any) -> Any:
        """As a call, in a process that has imported nothing yet."""
        other = HubClient.__new__(HubClient)
        other.env, other._worker = self.env, None
        try:
            return other(source, **arguments)
        finally:
            other.close()

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class _Worker:
    """The program, a line to it and a line back."""

    def __init__(self, env: dict[str, str]) -> None:
        (theirs, calls), (answers, back) = Pipe(duplex=False), Pipe(duplex=False)
        self.program = Program(
            [Path(__file__).with_name("worker.py")], env=env, pipes={0: theirs, 1: back}, fresh=True
        )
        theirs.close()
        back.close()
        self.calls, self.answers = os.fdopen(os.dup(calls.fileno()), "w"), os.fdopen(os.dup(answers.fileno()))
        calls.close()
        answers.close()

    def ask(self, call: str) -> str:
        """The answer; nothing if the program has ended."""
        self.calls.write(call + "\n")
        self.calls.flush()
        return self.answers.readline()

    def close(self) -> None:
        self.calls.close()
        self.program.wait(10)
        self.answers.close()
