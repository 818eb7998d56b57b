"""Every row at batches of four times the size each, until memory ends: 8, 32, 128, 512, ..."""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.rounds import Tell, now
from benchmarks.steps.methods import Method, NotPossible, load_config, make_batches, make_method, new_model
from benchmarks.steps.settings import COMPILED, BenchSettings

GROWTH = 4
WARM_UP, STEPS = 1, 3


@dataclass(frozen=True)
class Rung:
    """One row at one size of batch."""

    row: str
    batch: int
    step_seconds: float | None
    """Median; None where memory has ended."""
    tokens_per_second: float | None
    peak_bytes: int | None
    """That PyTorch has allocated on the GPU, the base included, whose frozen weights are shared; None on a CPU."""


def climb(settings: BenchSettings, up_to: int, tell: Tell = lambda line: None) -> Iterator[Rung]:
    """Measure rung after rung; compiled rows, which every size compiles anew, are left out.

    Args:
        settings: on what; `batch` is the first size, and every example is of full length.
        up_to: the largest size of batch.
        tell: is told what goes on, a line at a time.
    """
    config = load_config(settings.base)
    base = new_model(config).to(settings.device)
    for name in settings.rows:
        if name.endswith(COMPILED):
            continue
        tell(f"{name}, batches of {settings.batch} to {up_to}")
        with tempfile.TemporaryDirectory(prefix="spafit-bench-") as folder:
            method, size = None, settings.batch
            while size <= up_to:
                here = replace(settings, batch=size, batches=1, full_length=True)
                if settings.device != "cpu":
                    gc.collect()
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                try:
                    batches = make_batches(here, config)
                    if method is None:
                        method = make_method(name, base, here, batches, Path(folder))
                    else:
                        method.fill(batches)
                    yield _rung(method, here, batches[0])
                except NotPossible as error:
                    tell(f"{name} is left out: {error}")
                    break
                except torch.OutOfMemoryError:
                    yield Rung(name, size, None, None, None)
                    break
                size *= GROWTH
            if method is not None and method.cache is not None:
                method.cache.close()


def _rung(method: Method, settings: BenchSettings, batch: dict[str, torch.Tensor]) -> Rung:
    seconds = []
    for _ in range(WARM_UP + STEPS):
        start = now(settings.clock, settings.device)
        method.step(batch)
        seconds.append(now(settings.clock, settings.device) - start)
    step = statistics.median(seconds[WARM_UP:])
    peak = torch.cuda.max_memory_allocated() if settings.device != "cpu" else None
    return Rung(method.name, settings.batch, step, settings.batch * settings.max_tokens / step, peak)


def ladder_table(rungs: Sequence[Rung]) -> str:
    """As a table in Markdown."""
    lines = ["| method | batch | step, ms | tokens/s | peak on the GPU, MB |", "| --- | ---: | ---: | ---: | ---: |"]
    for each in rungs:
        if each.step_seconds is None or each.tokens_per_second is None:
            lines.append(f"| {each.row} | {each.batch} | out of memory | | |")
            continue
        peak = "-" if each.peak_bytes is None else f"{each.peak_bytes / 1e6:,.0f}"
        step, tokens = f"{1e3 * each.step_seconds:.1f}", f"{each.tokens_per_second:,.0f}"
        lines.append(f"| {each.row} | {each.batch} | {step} | {tokens} | {peak} |")
    return "\n".join(lines)
