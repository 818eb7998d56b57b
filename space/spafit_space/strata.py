"""Which parts of which layers an adapter touches, read from its tensors' names rather than from what it says.

What each letter means stands in `spafit_hf.strategy.drawing`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from spafit_hf.adapter import VerifiedAdapter
from spafit_hf.architecture import Architecture
from spafit_hf.strategy import ROLES
from spafit_hf.strategy.drawing import BIAS, BOTH, BOTTLENECK, FEED_FORWARD, FROZEN, LORA, MIXED, WHOLE, mark
from spafit_hf.words import listing


@dataclass(frozen=True)
class Band:
    """A run of layers that change in the same way."""

    first: int
    last: int
    marks: str
    """A letter per role, in the order of `spafit_hf.strategy.ROLES`."""
    what: str
    """In words."""

    @property
    def touched(self) -> bool:
        return set(self.marks) != {FROZEN}


@dataclass(frozen=True)
class Strata:
    """The layers of a base under one adapter."""

    bands: tuple[Band, ...]
    depth: int
    head: bool
    """Whether it brings a head of its own."""
    outside: bool
    """Whether it changes anything outside the layers but the head."""

    @property
    def frozen(self) -> int:
        """Leading layers that it leaves as they are."""
        return self.bands[0].last + 1 if self.bands and not self.bands[0].touched else 0


def strata_of(adapter: VerifiedAdapter, architecture: Architecture) -> Strata:
    """The strata of a verified adapter on a base, for the first of its stacks."""
    layers = architecture.stacks[0].layers
    biases = set(adapter.bias_modules)
    ranks = {name: settings.r for name, settings in adapter.lora.items()}
    parts = (ranks, biases, adapter.bottlenecks)
    marks = ["".join(_mark(layer.modules[role], parts) for role in ROLES) for layer in layers]
    rank = [tuple(sorted({ranks[n] for n in layer.names(ROLES) if n in ranks})) for layer in layers]
    inside = tuple(f"{layer.path}." for stack in architecture.stacks for layer in stack.layers)
    outside = any(not name.startswith(inside) for name in (*biases, *ranks))
    return Strata(_bands(marks, rank), len(layers), bool(adapter.head), outside)


def full_strata(depth: int) -> Strata:
    """Those of a model in which every weight was trained."""
    return Strata((Band(0, depth - 1, WHOLE * len(ROLES), "every weight"),), depth, head=True, outside=True)


def _mark(modules: tuple[str, ...], parts: Iterable[Collection[str]]) -> str:
    return mark(*(any(name in part for name in modules) for part in parts))


def _bands(marks: list[str], ranks: list[tuple[int, ...]]) -> tuple[Band, ...]:
    bands = []
    for (letters, rank), run in itertools.groupby(range(len(marks)), key=lambda index: (marks[index], ranks[index])):
        numbers = list(run)
        bands.append(Band(numbers[0], numbers[-1], letters, _what(letters, rank)))
    return tuple(bands)


def _what(marks: str, ranks: tuple[int, ...]) -> str:
    by_role = dict(zip(ROLES, marks, strict=True))
    lora = [role for role, letter in by_role.items() if letter in (LORA, BOTH)]
    biases = [role for role, letter in by_role.items() if letter in (BIAS, BOTH)]
    parts = []
    if lora:
        rank = f" (rank {listing([str(r) for r in ranks])})"
        parts.append(f"LoRA{rank} on {_where(lora)}")
    if biases:
        parts.append("every bias" if len(biases) == len(ROLES) else f"biases of {_where(biases)}")
    if added := [role for role, letter in by_role.items() if letter in (BOTTLENECK, MIXED)]:
        mixed = " with LoRA or biases" if MIXED in marks else ""
        parts.append(f"bottleneck adapters{mixed} in {_where(added)}")
    return listing(parts) or "frozen"


def _where(roles: list[str]) -> str:
    attention = [role for role in roles if role not in FEED_FORWARD]
    forward = [role for role in roles if role in FEED_FORWARD]
    parts = []
    if attention:
        parts.append("attention")
    if forward:
        parts.append("feed-forward")
    return listing(parts)
