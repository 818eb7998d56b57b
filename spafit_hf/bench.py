"""What a training step costs, method by method, measured side by side in one process.

    round 1:  lora-II  full  ...  spafit-8-16-II  spafit-8-16-II cached      one batch, every method
    round 2:  full  ...  spafit-8-16-II cached  lora-II                      the next batch, another order
    ...
    ratio = median over rounds of (a method's step / LoRA-II's step of the same round)

On a machine that others use as well the times drift, and the ratios within a round hardly do. The baselines are stock
PEFT and plain PyTorch, get the same batches grouped by length, the same dropout and the same fused AdamW.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, PretrainedConfig

from spafit_hf.adapter import load_adapter, save_adapter
from spafit_hf.planner import plan
from spafit_hf.prefix_cache.cache import CacheSettings, PrefixCache
from spafit_hf.run import machine, versions
from spafit_hf.strategy import Strategy
from spafit_hf.tuner import get_spafit_model
from spafit_hf.tuner.plain import plain_view

BASELINE = "lora-II"
BASELINES = ("full", "bitfit", "lora-I", "lora-II")
STRATEGIES = ("spafit-4-9-II", "spafit-8-16-II")
CACHED = " cached"
"""Ends the name of a strategy that is measured with the prefix cache."""

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class BenchSettings:
    """What to measure on.

    Raises:
        ValueError: for a number that cannot be.
    """

    base: str = ""
    """Hub id, folder or config.json whose configuration is used, with random weights; "" for a small BERT."""
    strategies: tuple[str, ...] = STRATEGIES
    rounds: int = 12
    batch: int = 8
    max_tokens: int = 64
    """Lengths are those of sentences: most are short, none is longer."""
    batches: int = 8
    """Different batches, grouped by length."""
    lora_r: int = 16
    dtype: str = "float16"
    """Of the cached states."""
    threads: int = 0
    """0: as many as PyTorch takes."""

    def __post_init__(self) -> None:
        for name in ("rounds", "batch", "batches", "lora_r"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.max_tokens < 8:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be 8 or more.")


@dataclass(frozen=True)
class MethodResult:
    """What one method cost."""

    method: str
    step_seconds: float
    """Median of the rounds."""
    step_spread: float
    """Distance of the quartiles over the median, short and long batches together; see `ratio_quartiles` for noise."""
    ratio: float
    """Over LoRA-II: the median of the rounds' ratios."""
    ratio_quartiles: tuple[float, float]
    theory: float | None
    """FLOPs of a step over those of LoRA-II at the longest length; None for the baselines that stock PEFT runs."""
    tokens_per_second: float
    """Real tokens, without padding."""
    build_seconds: float
    """To compute and store the states of all batches; 0 without a cache."""
    epochs_seconds: tuple[float, float, float]
    """All batches once, three and ten times, with the build."""
    saved_activation_bytes: int
    """What the forward pass of the longest batch keeps for its backward pass, without the weights."""
    weight_bytes: int
    """Parameters in memory; without those that the cache replaces."""
    trained_parameters: int
    adapter_bytes: int | None
    load_seconds: float | None
    """From an adapter folder onto a base that is in memory."""
    switch_seconds: float | None
    """From one adapter to another on one base."""


@dataclass(frozen=True)
class BenchResult:
    """A whole measurement."""

    settings: dict[str, Any]
    model: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    methods: tuple[MethodResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)

    def table(self) -> str:
        """As a table in Markdown, with the machine below."""
        lines = [
            "| method | step, ms | spread | over lora-II | quartiles | FLOPs | tokens/s | build, s | 3 epochs, s "
            "| kept for backward, MB | weights, MB | adapter, kB | load, ms | switch, ms |",
            "| --- |" + " ---: |" * 13,
        ]
        for each in self.methods:
            cells = (
                each.method,
                f"{1e3 * each.step_seconds:.1f}",
                f"{each.step_spread:.0%}",
                f"{each.ratio:.3f}",
                "{:.3f}-{:.3f}".format(*each.ratio_quartiles),
                _or_dash(each.theory, 1, ".3f"),
                f"{each.tokens_per_second:,.0f}",
                f"{each.build_seconds:.2f}" if each.build_seconds else "-",
                f"{each.epochs_seconds[1]:.1f}",
                f"{each.saved_activation_bytes / 1e6:.1f}",
                f"{each.weight_bytes / 1e6:.1f}",
                _or_dash(each.adapter_bytes, 1e-3, ",.0f"),
                _or_dash(each.load_seconds, 1e3, ".0f"),
                _or_dash(each.switch_seconds, 1e3, ".1f"),
            )
            lines.append("| " + " | ".join(cells) + " |")
        load = self.machine.get("load")
        lines += [
            "",
            f"{self.model['type']}, {self.model['layers']} layers of {self.model['hidden']}, random weights, fp32; "
            f"batches of {self.settings['batch']}, up to {self.settings['max_tokens']} tokens, grouped by length; "
            f"{self.settings['rounds']} rounds.",
            f"{self.machine['cores']} cores ({self.machine['processor']}), {self.machine['threads']} threads, load "
            f"{load if load is None else f'{load:.1f}'} before; torch {self.versions['torch']}, transformers "
            f"{self.versions['transformers']}, peft {self.versions['peft']}.",
        ]
        return "\n".join(lines)

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draw the ratios, measured and by FLOPs.

        Raises:
            ValueError: without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ValueError("a picture needs matplotlib: pip install matplotlib, or leave --picture out.") from error
        figure = Figure(figsize=(8, 0.45 * len(self.methods) + 1.4), layout="constrained")
        axes = figure.subplots()
        names = [each.method for each in self.methods]
        middle = [each.ratio for each in self.methods]
        errors = [
            [each.ratio - each.ratio_quartiles[0] for each in self.methods],
            [each.ratio_quartiles[1] - each.ratio for each in self.methods],
        ]
        axes.barh(names, middle, xerr=errors, color="#4c78a8", label="measured, with quartiles")
        theory = [(each.theory, each.method) for each in self.methods if each.theory is not None]
        axes.plot([x for x, _ in theory], [y for _, y in theory], "|", color="#e45756", ms=14, mew=2, label="FLOPs")
        axes.axvline(1, color="gray", lw=0.8)
        axes.invert_yaxis()
        axes.set_xlabel("time of a training step over that of LoRA-II (stock PEFT)")
        axes.legend(loc="lower right")
        figure.savefig(path, dpi=120)


def _or_dash(value: float | None, scale: float, form: str) -> str:
    return "-" if value is None else format(value * scale, form)


# -- the methods --


@dataclass
class _Method:
    """A model that takes steps."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    cache: PrefixCache | None = None
    build_seconds: float = 0.0

    def step(self, batch: Batch) -> None:
        self.model.train()
        with self.attached():
            self.model(**batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def attached(self) -> AbstractContextManager[None]:
        return self.cache.attached() if self.cache is not None else nullcontext()


def small_bert() -> BertConfig:
    """The base that is measured by default: BERT-large's 24 layers at an eighth of their width, for a quick look."""
    return BertConfig(
        hidden_size=128, num_hidden_layers=24, num_attention_heads=4, intermediate_size=512, vocab_size=2000
    )


def _config(base: str) -> PretrainedConfig:
    if not base:
        return small_bert()
    try:
        return AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the configuration of {base!r} cannot be loaded: {reason} Name a folder.") from error


def _new_model(config: PretrainedConfig) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


def _stock_peft(model: nn.Module, name: str, r: int) -> nn.Module:
    """A baseline without this package: plain PyTorch, or PEFT's LoRA on the same matrices."""
    if name == "full":
        return model
    the_plan = plan(plain_view(model), Strategy.from_name(name))
    if name == "bitfit":
        head = tuple(f"{module}." for module in the_plan.head)
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad = parameter_name.endswith("bias") or parameter_name.startswith(head)
        return model
    config = LoraConfig(
        r=r,
        lora_alpha=2 * r,
        target_modules=sorted(the_plan.lora),
        modules_to_save=list(the_plan.head),
        task_type=TaskType.SEQ_CLS,
    )
    return get_peft_model(model, config)


def _make(name: str, config: PretrainedConfig, settings: BenchSettings, batches: Sequence[Batch], to: Path) -> _Method:
    model = _new_model(config)
    strategy = name.removesuffix(CACHED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in BASELINES:
            model = _stock_peft(model, name, settings.lora_r)
        else:
            lora = Strategy.coerce(strategy).with_lora(r=settings.lora_r, lora_alpha=2 * settings.lora_r)
            model = get_spafit_model(model, lora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    method = _Method(name, model, optimizer)
    if name.endswith(CACHED):
        method.cache = PrefixCache(model, CacheSettings(to / name, dtype=settings.dtype))
        start = time.perf_counter()
        method.cache.prepare(batches[0])
        for batch in batches:
            method.cache.fill(batch)
        method.build_seconds = time.perf_counter() - start
    return method


# -- measuring --


def make_batches(settings: BenchSettings, config: PretrainedConfig) -> list[Batch]:
    """Batches of random tokens, padded on the right, whose lengths are spread like those of sentences."""
    draw = random.Random(0)
    longest = settings.max_tokens
    total = settings.batch * settings.batches
    lengths = sorted((min(longest, max(6, round(draw.lognormvariate(3.1, 0.6)))) for _ in range(total)), reverse=True)
    vocabulary, generator = int(config.vocab_size), torch.Generator().manual_seed(0)
    found = []
    for start in range(0, total, settings.batch):
        part = lengths[start : start + settings.batch]
        shape = (settings.batch, part[0])
        mask = torch.arange(part[0])[None, :] < torch.tensor(part)[:, None]
        ids = torch.randint(min(1000, vocabulary // 2), vocabulary, shape, generator=generator)
        pad = config.pad_token_id or 0
        labels = torch.randint(0, 2, (settings.batch,), generator=generator)
        found.append({"input_ids": ids.masked_fill(~mask, pad), "attention_mask": mask.long(), "labels": labels})
    return found


def saved_activation_bytes(method: _Method, batch: Batch) -> int:
    """Bytes that the forward pass keeps for the backward pass, each storage once, without the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*method.model.parameters(), *method.model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    method.model.train()
    with method.attached(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = method.model(**batch).loss
    del loss
    return sum(kept.values())


def measure(settings: BenchSettings, tell: Callable[[str], None] = lambda line: None) -> BenchResult:
    """Measure every method.

    Args:
        settings: on what.
        tell: is told what goes on, a line at a time.

    Raises:
        ValueError: for a base or a strategy that cannot be measured.
    """
    config = _config(settings.base)
    config.num_labels = 2
    threads_before = torch.get_num_threads()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    about = machine() | {
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
    }
    names = [*BASELINES, *(name for each in settings.strategies for name in (each, each + CACHED))]
    batches = make_batches(settings, config)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spafit-bench-")))
        stack.callback(torch.set_num_threads, threads_before)
        methods = []
        for name in names:
            tell(f"preparing {name}")
            methods.append(_make(name, config, settings, batches, folder))
        tell(f"measuring {len(methods)} methods in {settings.rounds} rounds")
        seconds = _rounds(methods, batches, settings.rounds)
        results = tuple(_result(method, seconds, batches, config, settings, folder / "adapters") for method in methods)
        for method in methods:
            if method.cache is not None:
                method.cache.close()
    layers = plan(plain_view(_new_model(config)), Strategy.from_name("lora-II")).num_layers
    hidden = config.get_text_config().hidden_size
    model = {"type": config.model_type, "layers": layers, "hidden": hidden, "base": settings.base or "small BERT"}
    return BenchResult(dataclasses.asdict(settings), model, about, versions(), results)


def _rounds(methods: Sequence[_Method], batches: Sequence[Batch], rounds: int) -> dict[str, list[float]]:
    """Seconds of each method's step in each round."""
    for method in methods:  # optimizer states, thread pools, entries checked for the first time
        for batch in (batches[0], batches[-1]):
            method.step(batch)
    seconds: dict[str, list[float]] = {method.name: [] for method in methods}
    for number in range(rounds):
        batch = batches[number % len(batches)]
        turn = number % len(methods)
        for method in (*methods[turn:], *methods[:turn]):
            start = time.perf_counter()
            method.step(batch)
            seconds[method.name].append(time.perf_counter() - start)
    return seconds


def _result(
    method: _Method,
    all_seconds: dict[str, list[float]],
    batches: Sequence[Batch],
    config: PretrainedConfig,
    settings: BenchSettings,
    folder: Path,
) -> MethodResult:
    seconds, baseline = all_seconds[method.name], all_seconds[BASELINE]
    ratios = [own / other for own, other in zip(seconds, baseline, strict=True)]
    low, _, high = _quartiles(seconds)
    ratio_low, ratio, ratio_high = _quartiles(ratios)
    # Rounds go through the batches in turn; where they do not come out even, this is near enough.
    tokens = [int(batch["attention_mask"].sum()) for batch in batches]
    seen = sum(tokens[number % len(batches)] for number in range(len(seconds)))
    epoch = len(batches) * statistics.mean(seconds)
    model = method.model
    own_method = method.name not in BASELINES
    activations = saved_activation_bytes(method, batches[0])
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if method.cache is not None:
        weights -= method.cache.drop_weights()
        method.cache.close()
    adapter = _adapter_costs(model, config, folder / method.name.replace(" ", "-")) if _is_adapter(model) else None
    return MethodResult(
        method=method.name,
        step_seconds=statistics.median(seconds),
        step_spread=(high - low) / statistics.median(seconds),
        ratio=ratio,
        ratio_quartiles=(ratio_low, ratio_high),
        theory=_theory(method, config, settings) if own_method or method.name in ("full", BASELINE) else None,
        tokens_per_second=seen / sum(seconds),
        build_seconds=method.build_seconds,
        epochs_seconds=(
            method.build_seconds + epoch,
            method.build_seconds + 3 * epoch,
            method.build_seconds + 10 * epoch,
        ),
        saved_activation_bytes=activations,
        weight_bytes=weights,
        trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        adapter_bytes=adapter[0] if adapter else None,
        load_seconds=adapter[1] if adapter else None,
        switch_seconds=adapter[2] if adapter else None,
    )


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _is_adapter(model: nn.Module) -> bool:
    return isinstance(model, PeftModel)


def _theory(method: _Method, config: PretrainedConfig, settings: BenchSettings) -> float:
    with torch.device("meta"):
        bare = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)

    def flops(name: str, cached: bool) -> float:
        strategy = Strategy.coerce(name)
        lora = strategy if strategy.full else strategy.with_lora(r=settings.lora_r, lora_alpha=2 * settings.lora_r)
        return plan(bare, lora).flops(settings.batch, settings.max_tokens, cached_prefix=cached).total

    return flops(method.name.removesuffix(CACHED), method.cache is not None) / flops(BASELINE, False)


def _adapter_costs(model: nn.Module, config: PretrainedConfig, folder: Path) -> tuple[int, float, float]:
    """Bytes of the adapter's file, seconds to load it onto a base, seconds to switch to it from another."""
    assert isinstance(model, PeftModel)
    stock = model.peft_config["default"].peft_type == "LORA"
    if stock:
        model.save_pretrained(str(folder))
    else:
        save_adapter(model, folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    base = _new_model(config)
    start = time.perf_counter()
    loaded = PeftModel.from_pretrained(base, str(folder)) if stock else load_adapter(base, folder)
    load = time.perf_counter() - start
    if stock:
        loaded.load_adapter(str(folder), adapter_name="other")
    else:
        load_adapter(loaded, folder, adapter_name="other")
    times = []
    for name in ("other", "default") * 3:
        start = time.perf_counter()
        loaded.set_adapter(name)
        times.append(time.perf_counter() - start)
    return size, load, statistics.median(times)


def write(result: BenchResult, path: str | os.PathLike[str]) -> None:
    """Write a measurement as JSON."""
    Path(path).write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
