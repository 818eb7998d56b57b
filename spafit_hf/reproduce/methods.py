"""The methods of a grid on its base: strategies, controls among them, and what a cell of each costs."""

from __future__ import annotations

import functools
import random
from typing import Any

from spafit_hf.planner import Plan, plan
from spafit_hf.planner.source import build_model
from spafit_hf.reproduce.grid import Cell, Grid
from spafit_hf.reproduce.presets import UNCACHED
from spafit_hf.strategy import Strategy

TOKENS = {
    "cola": 11, "sst2": 14, "mrpc": 53, "stsb": 28, "qqp": 31, "mnli": 40, "qnli": 50, "rte": 67, "wnli": 37
}  # fmt: skip
"""Tokens per train row, the mean of at most 2,000, by the tokenizer of the embedded base."""


class Methods:
    """The methods of a grid as strategies and plans on its base, of which the configuration alone is read."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.plan = functools.cache(self._plan)
        self._model = functools.cache(functools.partial(build_model, grid.base))
        self.layers = self.plan("full", 0, 2).num_layers

    def strategy(self, method: str, seed: int) -> Strategy:
        """The strategy of a method: a control is made of its seed and of what it is compared with."""
        method = method.removesuffix(UNCACHED)
        lora: dict[str, Any] = {"r": self.grid.lora_r, "lora_alpha": self.grid.lora_alpha}
        if method == "random-cut":
            if self.layers < 3:
                raise ValueError(
                    f"a random cut has three groups of layers, and {self.grid.base} has {self.layers}; take a base of "
                    "three or more (or leave random-cut out of --methods)."
                )
            pairs = [(n1, n2) for n2 in range(self.layers - 1) for n1 in range(n2)]
            cuts = [Strategy.from_bounds(*pair, "II", **lora) for pair in pairs]
            own = [layers for _, layers in self.strategy("spafit-4-9-II", seed).resolve(self.layers)]
            others = [cut for cut in cuts if [layers for _, layers in cut.resolve(self.layers)] != own]
            return random.Random(f"{method} {seed}").choice(others or cuts)
        if method == "lora-II-equal":
            # Without the head, parameters are the rank's multiple.
            head = self.plan("linear-probe", 0, 2).trainable_parameters
            wanted = self.plan("spafit-4-9-II", 0, 2).trainable_parameters - head
            rank = max(1, round(self.grid.lora_r * wanted / (self.plan("lora-II", 0, 2).trainable_parameters - head)))
            alpha = self.grid.lora_alpha * rank / self.grid.lora_r
            return Strategy.from_name("lora-II", r=rank, lora_alpha=alpha)
        return Strategy.from_name(method).with_lora(**lora)

    def _plan(self, method: str, seed: int, num_labels: int) -> Plan:
        return plan(self._model(num_labels), self.strategy(method, seed))

    def prefix(self, method: str, seed: int) -> int:
        """Layers whose states come from the cache; 0 where the method has none, or is not to use one."""
        if not self.grid.prefix_cache or method.endswith(UNCACHED):
            return 0
        return self.strategy(method, seed).prefix_length(self.layers)


def flops(methods: Methods, cell: Cell, train_rows: int, other_rows: int) -> float:
    """FLOPs of a cell, its evaluations included and padding not.

    Args:
        methods: of its grid.
        cell: of any rate.
        train_rows, other_rows: of the task, to train on and to measure on.
    """
    grid = methods.grid
    epochs = grid.search_epochs if cell.stage == "search" else grid.num_train_epochs
    if cell.stage == "search":
        train_rows = min(grid.search_rows or train_rows, train_rows)
    cached = methods.prefix(cell.method, cell.seed) > 0
    step = methods.plan(cell.method, cell.seed, 2).flops(1, TOKENS[cell.task], cached_prefix=cached)
    return epochs * (train_rows * step.total + other_rows * step.forward)
