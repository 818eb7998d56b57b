"""On a GPU, besides the table in fp32: bf16, torch.compile, and batches until memory ends.

fp32 -> bf16 -> bf16 compiled      a table each
batch 8, 16, 32, ...               until PyTorch says that memory has ended, method by method
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps.measure import Tell, measure, now
from benchmarks.steps.methods import NotPossible, load_config, make_batches, make_method, new_model
from benchmarks.steps.result import BenchResult
from benchmarks.steps.settings import BenchSettings

WARM_UP, STEPS = 2, 5
LARGEST_BATCH = 2**16


@dataclass(frozen=True)
class Rung:
    """One method at one size of batch."""

    method: str
    batch: int
    step_seconds: float | None
    """Median; None where memory has ended."""
    tokens_per_second: float | None
    peak_bytes: int | None
    """That PyTorch has allocated on the GPU; None on a CPU."""


@dataclass(frozen=True)
class GpuResult:
    """What a GPU is measured for."""

    tables: tuple[BenchResult, ...]
    """bf16, and bf16 compiled."""
    ladder: tuple[Rung, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)

    def table(self) -> str:
        """All tables in Markdown."""
        return "\n\n".join([*(each.table() for each in self.tables), ladder_table(self.ladder)])


def measure_gpu(settings: BenchSettings, tell: Tell = lambda line: None, *, backend: str = "inductor") -> GpuResult:
    """Measure what `measure` leaves out.

    Args:
        settings: on what; its device is a GPU.
        tell: is told what goes on, a line at a time.
        backend: of torch.compile.
    """
    mixed = dataclasses.replace(settings, precision="bfloat16", memory=False)
    tables = []
    for chosen in (mixed, dataclasses.replace(mixed, compile=backend)):
        tell(f"{chosen.precision}{', compiled' if chosen.compile else ''}")
        tables.append(measure(chosen, tell))
    return GpuResult(tuple(tables), climb(mixed, tell))


def climb(settings: BenchSettings, tell: Tell = lambda line: None) -> tuple[Rung, ...]:
    """Every method at batches of twice the size each, until memory ends.

    Args:
        settings: on what; `batch` is the first size, and every example is of full length.
        tell: is told what goes on, a line at a time.
    """
    base = new_model(load_config(settings.base)).to(settings.device)
    rungs = []
    for name in settings.methods:
        batch = settings.batch
        while batch <= LARGEST_BATCH:
            tell(f"{name}, batches of {batch}")
            try:
                rung = _rung(name, base, dataclasses.replace(settings, batch=batch, batches=1, full_length=True))
            except NotPossible as error:
                tell(f"{name} is left out: {error}")
                break
            rungs.append(rung)
            if rung.step_seconds is None:
                break
            batch *= 2
    return tuple(rungs)


def _rung(name: str, base: torch.nn.Module, settings: BenchSettings) -> Rung:
    on_gpu = settings.device != "cpu"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    with tempfile.TemporaryDirectory(prefix="spafit-bench-") as folder:
        try:
            batches = make_batches(settings, load_config(settings.base))
            method = make_method(name, base, settings, batches, Path(folder))
            for _ in range(WARM_UP + STEPS):
                start = now(settings)
                method.step(batches[0])
                seconds.append(now(settings) - start)
        except torch.OutOfMemoryError:
            return Rung(name, settings.batch, None, None, None)
        if method.cache is not None:
            method.cache.close()
    step = statistics.median(seconds[WARM_UP:])
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    return Rung(name, settings.batch, step, settings.batch * settings.max_tokens / step, peak)


def ladder_table(rungs: Sequence[Rung]) -> str:
    """As a table in Markdown."""
    lines = ["| method | batch | step, ms | tokens/s | peak on the GPU, MB |", "| --- | ---: | ---: | ---: | ---: |"]
    for each in rungs:
        if each.step_seconds is None or each.tokens_per_second is None:
            lines.append(f"| {each.method} | {each.batch} | out of memory | | |")
            continue
        peak = "-" if each.peak_bytes is None else f"{each.peak_bytes / 1e6:,.0f}"
        step, tokens = f"{1e3 * each.step_seconds:.1f}", f"{each.tokens_per_second:,.0f}"
        lines.append(f"| {each.method} | {each.batch} | {step} | {tokens} | {peak} |")
    return "\n".join(lines)
