"""What the benchmarks of speed share: a clock, rounds in which every way has its turn, quartiles, and the files."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Tell = Callable[[str], None]

CLOCKS = ("wall", "cpu")
"""cpu: the seconds that this process had a core, for machines that others use; best with one thread."""


def tell(line: str) -> None:
    """Say what goes on, beside the tables on standard output."""
    print(line, file=sys.stderr, flush=True)


def now(clock: str, device: str) -> float:
    """The clock, in seconds; on a GPU, once it has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.process_time() if clock == "cpu" else time.perf_counter()


def take_rounds(
    ways: Mapping[str, Callable[[int], object]], rounds: int, clock: str, device: str, tell: Tell = lambda line: None
) -> dict[str, list[float]]:
    """Seconds of every way in every round: what disturbs the machine disturbs all of them.

    Args:
        ways: name -> what is timed; it is given the number of the round.
        rounds: how many; each begins with another way.
        clock: one of `CLOCKS`.
        device: where the ways compute, such as "cpu".
        tell: is told the seconds, now and then.
    """
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            start = now(clock, device)
            ways[name](number)
            seconds[name].append(now(clock, device) - start)
        if rounds < 10 or number % 10 == 9:
            tell(f"round {number + 1}: " + ", ".join(f"{name} {each[-1]:.3f}" for name, each in seconds.items()))
    return seconds


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def write_json(path: Path, facts: Any) -> None:
    """Write a result file."""
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
