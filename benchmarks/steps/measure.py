"""The rounds, and everything else about a method."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from benchmarks.rounds import Tell, quartiles, take_rounds
from benchmarks.steps.adapters import adapter_costs
from benchmarks.steps.memory import PeakMemory, peak_memory, saved_activation_bytes
from benchmarks.steps.methods import (
    Batch,
    Method,
    NotPossible,
    is_adapter,
    load_config,
    make_batches,
    make_method,
    new_model,
)
from benchmarks.steps.result import BenchResult, MethodResult
from benchmarks.steps.settings import BASELINE, BenchSettings
from benchmarks.steps.theory import theory
from spafit_hf.planner import plan
from spafit_hf.shortcuts.offload import movable
from spafit_hf.strategy import Strategy
from spafit_hf.trainer.machine import machine, versions
from spafit_hf.tuner.plain import plain_view


def measure(settings: BenchSettings, tell: Tell = lambda line: None) -> BenchResult:
    """Measure every method.

    Args:
        settings: on what.
        tell: is told what goes on, a line at a time.

    Raises:
        ValueError: for a base or a strategy that cannot be measured.
    """
    config = load_config(settings.base)
    threads_before = torch.get_num_threads()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    about = describe(settings)
    batches = make_batches(settings, config)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spafit-bench-")))
        stack.callback(torch.set_num_threads, threads_before)
        # Before there is anything in this process, so that both fit.
        peaks = _peaks(settings, tell) if settings.memory and settings.device == "cpu" else {}
        base = new_model(config).to(settings.device)
        methods = make_methods(settings, base, batches, folder, tell)
        tell(f"measuring {len(methods)} methods in {settings.rounds} rounds")
        seconds = _rounds(methods, batches, settings, tell)
        costs: dict[str, tuple[int, float, float]] = {}
        for method in methods:  # the short cuts and bf16 change nothing of an adapter
            strategy = re.split(" cached|,", method.name)[0]
            if is_adapter(method) and strategy not in costs:
                costs[strategy] = adapter_costs(method.model, base, folder / strategy.replace(" ", "-"))
        results = tuple(
            _result(method, seconds, batches, config, settings, peaks.get(method.name), costs) for method in methods
        )
    layers = plan(plain_view(base), Strategy.from_name(BASELINE)).num_layers
    hidden = config.get_text_config().hidden_size
    model = {"type": config.model_type, "layers": layers, "hidden": hidden, "base": settings.base or "small BERT"}
    return BenchResult(dataclasses.asdict(settings), model, about, versions(), results)


def describe(settings: BenchSettings) -> dict[str, Any]:
    """The machine, before anything is measured."""
    return machine() | {
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "measured_on": settings.device,
    }


def _peaks(settings: BenchSettings, tell: Tell) -> dict[str, PeakMemory | None]:
    found = {}
    for name in settings.rows:
        tell(f"memory of {name}")
        try:
            found[name] = peak_memory(name, settings)
        except ValueError as error:
            tell(str(error))
    return found


def make_methods(
    settings: BenchSettings, base: nn.Module, batches: list[Batch], folder: Path, tell: Tell
) -> list[Method]:
    """All methods that the model allows for; of the others `tell` is told why not."""
    methods = []
    for name in settings.rows:
        tell(f"preparing {name}")
        try:
            methods.append(make_method(name, base, settings, batches, folder))
        except NotPossible as error:
            tell(f"{name} is left out: {error}")
    return methods


def _rounds(
    methods: Sequence[Method], batches: Sequence[Batch], settings: BenchSettings, tell: Tell
) -> dict[str, list[float]]:
    """Seconds of each method's step in each round."""
    for method in methods:  # optimizer states, thread pools, entries checked for the first time
        for batch in {id(batch): batch for batch in (batches[0], batches[-1])}.values():
            method.step(batch)

    def step(method: Method, number: int) -> None:
        method.step(batches[number % len(batches)])

    ways = {method.name: partial(step, method) for method in methods}
    return take_rounds(ways, settings.rounds, settings.clock, settings.device, tell)


def _result(
    method: Method,
    all_seconds: dict[str, list[float]],
    batches: Sequence[Batch],
    config: PretrainedConfig,
    settings: BenchSettings,
    peak: PeakMemory | None,
    costs: Mapping[str, tuple[int, float, float]],
) -> MethodResult:
    seconds, baseline = all_seconds[method.name], all_seconds[BASELINE]
    ratios = [own / other for own, other in zip(seconds, baseline, strict=True)]
    low, _, high = quartiles(seconds)
    ratio_low, ratio, ratio_high = quartiles(ratios)
    # Rounds go through the batches in turn; where they do not come out even, this is near enough.
    tokens = [int(batch["attention_mask"].sum()) for batch in batches]
    seen = sum(tokens[number % len(batches)] for number in range(len(seconds)))
    epoch = len(batches) * statistics.mean(seconds)
    model = method.model
    activations = saved_activation_bytes(method, batches[0])
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if method.cache is not None:
        assert method.cache.border is not None
        # Not by dropping them: what comes back is a copy, and no memory that the methods share.
        weights -= sum(p.numel() * p.element_size() for p in movable(method.cache.base, method.cache.border))
        method.cache.close()
    adapter = costs.get(re.split(" cached|,", method.name)[0])
    return MethodResult(
        method=method.name,
        step_seconds=statistics.median(seconds),
        step_spread=(high - low) / statistics.median(seconds),
        ratio=ratio,
        ratio_quartiles=(ratio_low, ratio_high),
        all_seconds=tuple(seconds),
        theory=theory(method.name, config, settings),
        tokens_per_second=seen / sum(seconds),
        build_seconds=method.build_seconds,
        epochs_seconds=(
            method.build_seconds + epoch,
            method.build_seconds + 3 * epoch,
            method.build_seconds + 10 * epoch,
        ),
        saved_activation_bytes=activations,
        weight_bytes=weights,
        peak_bytes=peak.steps if peak else None,
        process_peak_bytes=peak.process if peak else None,
        trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        adapter_bytes=adapter[0] if adapter else None,
        load_seconds=adapter[1] if adapter else None,
        switch_seconds=adapter[2] if adapter else None,
    )
