"""What to measure, and the names of the methods."""

from __future__ import annotations

from dataclasses import dataclass

import torch

BASELINE = "lora-II"
BASELINES = ("full", "bitfit", "lora-I", "lora-II")
STRATEGIES = ("spafit-4-9-II", "spafit-8-16-II")

CACHED = " cached"
"""Ends the name of a strategy that is measured with the prefix cache."""

FIRST_TOKEN = " + first token"
"""Follows `CACHED` where the last layer is computed for the first token alone, too."""

OWN = "spafit_hf "
"""Begins the name of a baseline's method when this package's tuner runs it."""

CLOCKS = ("wall", "cpu")
DTYPES = ("float16", "bfloat16", "float32")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class BenchSettings:
    """What to measure on.

    Raises:
        ValueError: for a number or a name that cannot be.
    """

    base: str = ""
    """Hub id, folder or config.json whose configuration is used, with random weights; "" for a small BERT."""
    strategies: tuple[str, ...] = STRATEGIES
    baselines: tuple[str, ...] = BASELINES
    """LoRA-II is one of them, since all is measured against it."""
    own: tuple[str, ...] = ("lora-II",)
    """Baselines that are measured through this package as well."""
    rounds: int = 12
    batch: int = 8
    max_tokens: int = 64
    """Lengths are those of sentences: most are short, none is longer."""
    full_length: bool = False
    """Every example is as long as the longest."""
    batches: int = 8
    """Different batches, grouped by length."""
    lora_r: int = 16
    dtype: str = "float16"
    """Of the cached states."""
    threads: int = 0
    """0: as many as PyTorch takes."""
    clock: str = "wall"
    """"cpu" counts the seconds that this process had a core, for machines that others use; best with one thread."""
    memory: bool = True
    """Measure resident memory, each method in a process of its own."""
    device: str = "cpu"
    precision: str = "float32"
    """What autocast computes in."""
    compile: str = ""
    """Backend of torch.compile, such as "inductor"; "" for none. The prefix cache does not go with it."""

    def __post_init__(self) -> None:
        for name in ("rounds", "batch", "batches", "lora_r"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.max_tokens < 8:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be 8 or more.")
        for name, allowed in (("clock", CLOCKS), ("dtype", DTYPES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}.")
        odd = [name for name in (*self.baselines, *self.own) if name not in BASELINES]
        if odd or BASELINE not in self.baselines:
            raise ValueError(
                f"baselines are {', '.join(self.baselines)}; allowed are {', '.join(BASELINES)}, and {BASELINE} is "
                "what the others are compared with."
            )
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("device is cuda, and PyTorch sees none; use cpu.")
        if self.clock == "cpu" and self.device != "cpu":
            raise ValueError("the clock 'cpu' says nothing about a GPU; use wall.")

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of all methods, in the order of the table."""
        endings = [""] if self.compile else ["", CACHED, CACHED + FIRST_TOKEN]
        return (
            *self.baselines,
            *(OWN + name for name in self.own),
            *(each + ending for each in self.strategies for ending in endings),
        )


def strategy_of(method: str) -> str:
    """The strategy in a method's name."""
    return method.removeprefix(OWN).removesuffix(FIRST_TOKEN).removesuffix(CACHED)
