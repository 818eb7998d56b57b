"""Bytes: what a forward pass keeps for its backward pass, and what a process has resident at its peak.

    parent   for each method:  python -m benchmarks.steps.memory '{settings}' 'spafit-8-16-II cached'
    child    model -> cache built -> frozen weights dropped -> peak set back -> two steps -> peak

In a process of its own, since memory that one method has given back stays resident for the next.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps.methods import Batch, Method, NotPossible, load_config, make_batches, make_method, new_model
from benchmarks.steps.settings import BenchSettings

STEPS = 2
"""The first makes the optimizer's states."""


@dataclass(frozen=True)
class PeakMemory:
    """Resident bytes of a method's process, those of Python and PyTorch included."""

    steps: int | None
    """Peak while it takes steps; None where the system does not tell (it does on Linux)."""
    process: int
    """Peak from start to end: loading and, with a cache, the build."""


def saved_activation_bytes(method: Method, batch: Batch) -> int:
    """Bytes that the forward pass keeps for the backward pass, each storage once, without the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*method.model.parameters(), *method.model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        # Not the tensor: where it is an operation's own output, the two would keep each other alive for good.
        return tensor.detach()

    method.model.train()
    with method.attached(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = method.loss(batch)
    del loss
    return sum(kept.values())


def peak_memory(name: str, settings: BenchSettings) -> PeakMemory | None:
    """Resident memory of a method, measured in a process of its own; None for one that is left out.

    Raises:
        ValueError: when that process fails.
    """
    package = Path(__file__).parents[2]
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.steps.memory", json.dumps(dataclasses.asdict(settings)), name],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        raise ValueError(f"the memory of {name!r} could not be measured: {reason}; leave it out with --no-memory.")
    found = json.loads(child.stdout.splitlines()[-1])
    return PeakMemory(**found) if found else None


def _measure_here(name: str, settings: BenchSettings) -> PeakMemory:
    config = load_config(settings.base)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    batches = make_batches(dataclasses.replace(settings, batches=1), config)
    with tempfile.TemporaryDirectory(prefix="spafit-bench-") as folder:
        method = make_method(name, new_model(config), settings, batches, Path(folder))
        if method.cache is not None:
            method.cache.drop_weights()
        told = _forget_peak()
        for _ in range(STEPS):
            method.step(batches[0])
        steps = _resident_peak() if told else None
        if method.cache is not None:
            method.cache.close()
    unit = 1 if sys.platform == "darwin" else 1024
    # Linux counts pages of each thread by itself and adds them up late: the two may differ by some.
    return PeakMemory(steps, max(steps or 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))


def _forget_peak() -> bool:
    """Ask Linux to count the peak anew; False where it does not do so."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _resident_peak() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no line VmHWM.")


def _main(arguments: list[str]) -> None:
    data: dict[str, Any] = json.loads(arguments[0])
    data |= {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    settings = BenchSettings(**data)
    try:
        found = dataclasses.asdict(_measure_here(arguments[1], settings))
    except NotPossible:
        found = None
    print(json.dumps(found))


if __name__ == "__main__":
    _main(sys.argv[1:])
