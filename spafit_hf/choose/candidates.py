"""The cuts that a search tries: from data, the paper's six on this depth, and one drawn at random as a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from spafit_hf.choose.budget import Budget
from spafit_hf.planner import plan
from spafit_hf.reproduce.grid import Grid
from spafit_hf.reproduce.methods import Methods
from spafit_hf.strategy import METHODS, Strategy
from spafit_hf.words import SpafitError, size

REFERENCE = "spafit-4-9-II"
CONTROL = "random-cut"
MOST = 8
"""Candidates at most, the reference and the control among them."""
DRAWS = 20
"""Of the control, until it is a cut that is no candidate otherwise."""


@dataclass(frozen=True)
class Candidate:
    """A cut with what it costs on this base."""

    name: str
    why: str
    strategy: dict[str, Any]
    parameters: int
    memory: int
    """Bytes of a training step: weights, gradients, the optimizer's, activations of the longest rows."""
    frozen: int
    """Leading layers whose states come from a cache."""
    step_flops: int
    """Forward and backward of a row of mean length, with the cache."""
    forward_flops: int
    prefix_flops: int
    """Forward through the frozen layers, of the same row."""

    def over(self, budget: Budget) -> str:
        """Which limit it breaks, and by how much; "" for none."""
        if budget.parameters is not None and self.parameters > budget.parameters:
            return f"{self.parameters:,} parameters train, and {budget.parameters:,} may"
        if budget.memory is not None and self.memory > budget.memory:
            return f"a step takes {size(self.memory)}, and it may take {size(budget.memory)}"
        return ""


def proposed(
    base: str, layers: int, n1: int, n2: int, roles: Sequence[str], seed: int, lora: Mapping[str, Any]
) -> list[tuple[str, Strategy]]:
    """Why and strategy of each cut worth a try, the most wanted first; of those that train the same, one.

    Args:
        base: from which the control's depth is read.
        layers: of the base.
        n1, n2: the cut from data, as layers of the base.
        roles: whose biases pay.
        seed: of the control.
        lora: rank and alpha wherever there is LoRA.
    """
    cut = Strategy.from_bounds(n1, n2, "II", **lora)
    chosen = tuple(
        replace(stratum, biases=tuple(role for role in stratum.biases if role in roles)) for stratum in cut.strata
    )
    methods = Methods(Grid(base=base, lora_r=lora["r"], lora_alpha=lora["lora_alpha"]))
    paper = [Strategy.from_name(name).with_lora(**lora) for name in METHODS if name.startswith("spafit-")]
    data = f"data-{n1 if n1 >= 0 else 'none'}"
    end = Strategy.from_bounds(n1, layers - 1, **lora)
    found = [
        ("the paper's best, scaled", Strategy.from_name(REFERENCE).with_lora(**lora)),
        ("N1 from the probes, N2 from the scores of the layers", replace(cut, name=f"{data}-{n2}")),
        ("the paper's with the fewest parameters, scaled", Strategy.from_name("spafit-8-16-II").with_lora(**lora)),
        ("the data's with only the biases that pay", replace(cut, strata=chosen, name=f"{data}-{n2}-biases")),
        ("biases alone beyond N1", replace(end, name=f"{data}-end")),
        *(("the paper's, scaled", each) for each in reversed(paper)),
    ]

    def trains(strategy: Strategy) -> list[Any]:
        return [(stratum.what(), run) for stratum, run in strategy.resolve(layers) if run and stratum.trains]

    distinct = [each for at, each in enumerate(found) if trains(each[1]) not in [trains(one) for _, one in found[:at]]]
    # On a base of few layers each cut may be one of the others.
    drawn = [methods.strategy(CONTROL, seed + draw) for draw in range(DRAWS)]
    others = [each for each in drawn if trains(each) not in [trains(one) for _, one in distinct]]
    control = f"control: a cut drawn by seed {seed}", replace((others or drawn)[0], name=CONTROL)
    return [distinct[0], control, *distinct[1:]]


def costed(
    model: nn.Module, cuts: Sequence[tuple[str, Strategy]], batch: int, tokens: int, longest: int
) -> list[Candidate]:
    """The cuts with their costs, by the planner.

    Args:
        model: without weights or with them.
        cuts: why and strategy of each.
        batch: rows of a step.
        tokens, longest: of a row, the mean and the most.
    """
    candidates = []
    for why, strategy in cuts:
        found = plan(model, strategy)
        whole, cached = (found.flops(1, tokens, cached_prefix=cache) for cache in (False, True))
        candidates.append(
            Candidate(
                name=strategy.name,
                why=why,
                strategy=strategy.to_dict(),
                parameters=found.trainable_parameters,
                memory=found.weight_bytes
                + found.gradient_bytes
                + found.optimizer_bytes
                + found.activation_bytes(batch, longest),
                frozen=next(iter(found.prefix_lengths.values())),
                step_flops=cached.total,
                forward_flops=cached.forward,
                prefix_flops=whole.forward - cached.forward,
            )
        )
    return candidates


def within(candidates: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """Those that a search may try; the reference and the control stay, as what the others are set against.

    Raises:
        SpafitError: where none is left that could be recommended.
    """
    fit = [each for each in candidates if not each.over(budget)]
    if not any(each.name != CONTROL for each in fit):
        least = min((each for each in candidates if each.name != CONTROL), key=lambda each: each.parameters)
        raise SpafitError(
            f"no cut is within the budget: of the one with the fewest parameters, {least.name}, {least.over(budget)}; "
            "raise that limit, or lower --lora_r."
        )
    return [each for each in candidates if each in fit or each.name in (REFERENCE, CONTROL)][:MOST]
