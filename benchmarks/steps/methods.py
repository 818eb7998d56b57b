"""Models that take steps, one per method, on one set of frozen weights."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, PretrainedConfig

from benchmarks.steps.settings import BF16, CACHED, COMPILED, FIRST_TOKEN, STOCK, BenchSettings, strategy_of
from spafit_hf.planner import plan
from spafit_hf.shortcuts.border import NotCacheable
from spafit_hf.shortcuts.cache import CacheSettings, PrefixCache
from spafit_hf.shortcuts.first_token import FirstToken, NotFirstToken, probe
from spafit_hf.strategy import Strategy
from spafit_hf.tuner import get_spafit_model
from spafit_hf.tuner.plain import base_of, plain_view
from spafit_hf.words import first_line

Batch = dict[str, torch.Tensor]

NotPossible = (NotCacheable, NotFirstToken)
"""What a method is left out for."""

MAX_GRAD_NORM = 1.0
"""As Trainer does by default: a norm over everything that trains, which takes longer where more does."""


@dataclass
class Method:
    """A model that takes steps."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    cache: PrefixCache | None = None
    first_token: FirstToken | None = None
    build_seconds: float = 0.0

    def step(self, batch: Batch) -> None:
        """One step of training."""
        self.model.train()
        with self.attached():
            self.loss(batch).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self, batch: Batch) -> torch.Tensor:
        """The loss of a batch, within `attached`."""
        with self.autocast(batch):
            return self.model(**batch).loss

    def autocast(self, batch: Batch) -> AbstractContextManager[object]:
        """bf16 for a row that is named so."""
        device = next(iter(batch.values())).device.type
        return torch.autocast(device, torch.bfloat16) if BF16 in self.name else nullcontext()

    def fill(self, batches: Sequence[Batch]) -> None:
        """Compute and store the states of batches, where there is a cache."""
        if self.cache is not None:
            for batch in batches:
                with self.autocast(batch):
                    self.cache.fill(batch)

    def attached(self) -> AbstractContextManager[object]:
        """Within it a pass takes the method's short cuts."""
        stack = ExitStack()
        if self.cache is not None:
            stack.enter_context(self.cache.attached())
        if self.first_token is not None:
            stack.enter_context(self.first_token.attached())
        return stack


def small_bert() -> BertConfig:
    """The base that is measured by default: BERT-large's 24 layers at an eighth of their width, for a quick look."""
    return BertConfig(
        hidden_size=128, num_hidden_layers=24, num_attention_heads=4, intermediate_size=512, vocab_size=2000
    )


def load_config(base: str) -> PretrainedConfig:
    """The configuration of a base, with two labels.

    Raises:
        ValueError: if there is none of that name.
    """
    if not base:
        config: PretrainedConfig = small_bert()
    else:
        try:
            config = AutoConfig.from_pretrained(base)
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise ValueError(f"the configuration of {base!r} cannot be loaded: {reason} Name a folder.") from error
    config.num_labels = 2
    config.problem_type = "single_label_classification"  # set in the first pass otherwise: torch.compile starts anew
    return config


def new_model(config: PretrainedConfig) -> nn.Module:
    """Random weights, the same for the same configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


def sharing(model: nn.Module) -> nn.Module:
    """A copy whose parameters are the same memory: many methods fit beside each other."""
    same = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, same)  # type: ignore[arg-type]  # a memo holds what stands for what


def stock(model: nn.Module, name: str, r: int) -> nn.Module:
    """A baseline without this package: plain PyTorch, or PEFT's LoRA on the same matrices."""
    if name in ("full", "bitfit"):
        if name == "bitfit":
            head = tuple(f"{module}." for module in plan(plain_view(model), Strategy.from_name(name)).head)
            for parameter_name, parameter in model.named_parameters():
                parameter.requires_grad = parameter_name.endswith("bias") or parameter_name.startswith(head)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.clone()  # it trains, and others have the same memory
        return model
    the_plan = plan(plain_view(model), Strategy.from_name(name))
    config = LoraConfig(
        r=r,
        lora_alpha=2 * r,
        target_modules=sorted(the_plan.lora),
        modules_to_save=list(the_plan.head),
        task_type=TaskType.SEQ_CLS,
    )
    return get_peft_model(model, config)


def with_rank(name: str, r: int) -> Strategy:
    """A strategy with LoRA of rank r."""
    strategy = Strategy.coerce(name)
    return strategy if strategy.full else strategy.with_lora(r=r, lora_alpha=2 * r)


def make_method(name: str, base: nn.Module, settings: BenchSettings, batches: list[Batch], folder: Path) -> Method:
    """A row of the table, ready to take steps; with a cache, once its states are computed and stored.

    Args:
        name: see `BenchSettings.rows`.
        base: the plain model, whose frozen weights are shared.
        settings: what to measure on.
        batches: all batches.
        folder: for the cache.

    Raises:
        ValueError: for a strategy that the model does not allow for.
        NotPossible: one of them, when a short cut in the name does not go with the model, or would change nothing.
    """
    model = sharing(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method_name = name.split(", ")[0]
        if method_name in STOCK:
            model = stock(model, method_name, settings.lora_r)
        else:
            model = get_spafit_model(model, with_rank(strategy_of(name), settings.lora_r))
    if name.endswith(COMPILED):
        model.compile(backend=settings.compile)  # not the base, whose forward PEFT calls past its `__call__`
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    method = Method(name, model, optimizer)
    if FIRST_TOKEN in name:
        method.first_token = probe(base_of(model), batches[0])
    if CACHED in name:
        # Strategies with the same border would read each other's entries, and no build could be timed.
        where = CacheSettings(folder / name.replace(" ", "-"))
        method.cache = PrefixCache(model, where, "bf16" if BF16 in name else "no")
        start = time.perf_counter()
        with method.autocast(batches[0]):
            method.cache.prepare(batches[0])
        method.fill(batches)
        method.build_seconds = time.perf_counter() - start
    return method


def is_adapter(method: Method) -> bool:
    """Whether a method has an adapter to save."""
    return isinstance(method.model, PeftModel)


def make_batches(settings: BenchSettings, config: PretrainedConfig) -> list[Batch]:
    """Batches of random tokens, padded on the right, the longest first; lengths spread like those of sentences."""
    draw = random.Random(0)
    longest = settings.max_tokens
    total = settings.batch * settings.batches
    if settings.full_length:
        lengths = [longest] * total
    else:
        lengths = sorted(min(longest, max(6, round(draw.lognormvariate(3.1, 0.6)))) for _ in range(total))[::-1]
    vocabulary, generator = int(config.vocab_size), torch.Generator().manual_seed(0)
    found = []
    for start in range(0, total, settings.batch):
        part = lengths[start : start + settings.batch]
        width = min(longest, -(-part[0] // 8) * 8)  # as with pad_to_multiple_of=8
        shape = (settings.batch, width)
        mask = torch.arange(width)[None, :] < torch.tensor(part)[:, None]
        ids = torch.randint(min(1000, vocabulary // 2), vocabulary, shape, generator=generator)
        pad = config.pad_token_id or 0
        labels = torch.randint(0, 2, (settings.batch,), generator=generator)
        batch = {"input_ids": ids.masked_fill(~mask, pad), "attention_mask": mask.long(), "labels": labels}
        found.append({name: value.to(settings.device) for name, value in batch.items()})
    return found


__all__ = ["Batch", "Method", "NotPossible", "load_config", "make_batches", "make_method", "new_model", "sharing"]
