"""What to measure, and the names of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.rounds import CLOCKS

BASELINE = "lora-II"
"""What every other row is compared with: stock PEFT, in fp32."""

STOCK = ("full", "bitfit", "lora-I", "lora-II")
"""Methods that are run without this package: plain PyTorch, or stock PEFT."""

OWN = "spafit_hf "
"""Begins the name of one of `STOCK` when this package's tuner runs it."""

METHODS = (*STOCK, OWN + BASELINE, "spafit-4-9-II", "spafit-8-16-II")

CACHED = " cached"
"""Follows the name of a strategy that is measured with the prefix cache."""

FIRST_TOKEN = " + first token"
"""Follows `CACHED` where the last layer is computed for the first token alone, too."""

BF16 = ", bf16"
"""Ends the name of a row whose passes run under autocast; weights and optimizer stay in fp32, as with Trainer."""

COMPILED = ", compiled"
"""Follows `BF16` where torch.compile has compiled the model. The prefix cache does not go with it."""


@dataclass(frozen=True)
class BenchSettings:
    """What to measure on.

    Raises:
        ValueError: for a number or a name that cannot be.
    """

    base: str = ""
    """Hub id, folder or config.json whose configuration is used, with random weights; "" for a small BERT."""
    methods: tuple[str, ...] = METHODS
    """Any of `STOCK`, LoRA-II among them; the same after `OWN`; names of strategies."""
    rounds: int = 12
    batch: int = 8
    max_tokens: int = 64
    """Lengths are those of sentences: most are short, none is longer."""
    full_length: bool = False
    """Every example is as long as the longest."""
    batches: int = 8
    """Different batches, grouped by length."""
    lora_r: int = 16
    threads: int = 0
    """0: as many as PyTorch takes."""
    clock: str = "wall"
    memory: bool = True
    """Measure resident memory, each row in a process of its own."""
    device: str = "cpu"
    bf16: bool = True
    """Measure every row in bf16 too."""
    compile: str = ""
    """Backend of torch.compile for a third row of each method, such as "inductor"; "" for none."""

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("batch", 1), ("batches", 1), ("lora_r", 1), ("max_tokens", 8)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more.")
        if self.clock not in CLOCKS:
            raise ValueError(f"clock is {self.clock!r}; allowed are {', '.join(CLOCKS)}.")
        if BASELINE not in self.methods:
            raise ValueError(
                f"methods are {', '.join(self.methods)}; add {BASELINE}, which the others are compared with."
            )
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("device is cuda, and PyTorch sees none; use cpu.")
        if self.clock == "cpu" and self.device != "cpu":
            raise ValueError("the clock 'cpu' says nothing about a GPU; use wall.")

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of all rows, in the order of the table: those in fp32, in bf16, and compiled."""
        live = []
        for name in self.methods:
            live += [name] if name.removeprefix(OWN) in STOCK else [name, name + CACHED, name + CACHED + FIRST_TOKEN]
        mixed = [name + BF16 for name in live] if self.bf16 else []
        compiled = [name + BF16 + COMPILED for name in live if CACHED not in name] if self.compile else []
        return (*live, *mixed, *compiled)


def strategy_of(row: str) -> str:
    """The strategy in a row's name."""
    return row.removeprefix(OWN).split(", ")[0].removesuffix(FIRST_TOKEN).removesuffix(CACHED)
