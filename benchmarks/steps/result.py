"""Figures, and how they are shown."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MethodResult:
    """What one method cost."""

    method: str
    step_seconds: float
    """Median of the rounds."""
    step_spread: float
    """Distance of the quartiles over the median, short and long batches together; see `ratio_quartiles` for noise."""
    ratio: float
    """Over LoRA-II in fp32: the median of the rounds' ratios."""
    ratio_quartiles: tuple[float, float]
    all_seconds: tuple[float, ...]
    """Of each round."""
    theory: float
    """FLOPs of a step over those of LoRA-II at the longest length."""
    tokens_per_second: float
    """Real tokens, without padding."""
    build_seconds: float
    """To compute and store the states of all batches, by the wall's clock; 0 without a cache."""
    epochs_seconds: tuple[float, float, float]
    """All batches once, three and ten times, with the build."""
    saved_activation_bytes: int
    """What the forward pass of the longest batch keeps for its backward pass, without the weights."""
    weight_bytes: int
    """Parameters in memory; without those that the cache replaces."""
    peak_bytes: int | None
    """Resident at the peak of training steps, in a process of its own, once the weights that the cache replaces are
    dropped; None where it was not measured."""
    process_peak_bytes: int | None
    """The same from start to end of that process, loading and the cache's build included."""
    trained_parameters: int
    adapter_bytes: int | None
    load_seconds: float | None
    """From an adapter folder onto a base that is in memory."""
    switch_seconds: float | None
    """From one adapter to another on one base."""


COLUMNS = (
    "method", "step, ms", "spread", "over lora-II", "quartiles", "FLOPs", "tokens/s", "build, s", "3 epochs, s",
    "kept for backward, MB", "weights, MB", "peak, MB", "adapter, kB", "load, ms", "switch, ms",
)  # fmt: skip


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
        """As a table in Markdown, with what was measured on below."""
        lines = ["| " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * (len(COLUMNS) - 1)]
        for each in self.methods:
            cells = (
                each.method,
                f"{1e3 * each.step_seconds:.1f}",
                f"{each.step_spread:.0%}",
                f"{each.ratio:.3f}",
                "{:.3f}-{:.3f}".format(*each.ratio_quartiles),
                f"{each.theory:.3f}",
                f"{each.tokens_per_second:,.0f}",
                f"{each.build_seconds:.2f}" if each.build_seconds else "-",
                f"{each.epochs_seconds[1]:.1f}",
                f"{each.saved_activation_bytes / 1e6:.1f}",
                f"{each.weight_bytes / 1e6:.1f}",
                _or_dash(each.peak_bytes, 1e-6, ",.0f"),
                _or_dash(each.adapter_bytes, 1e-3, ",.0f"),
                _or_dash(each.load_seconds, 1e3, ".0f"),
                _or_dash(each.switch_seconds, 1e3, ".1f"),
            )
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, "", self.about()])

    def about(self) -> str:
        """On what, and where."""
        load, chosen = self.machine.get("load"), self.settings
        clock = " Seconds are those in which the process had a core." if chosen["clock"] == "cpu" else ""
        compiled = f", compiled by {chosen['compile']} where the name says so" if chosen["compile"] else ""
        device = "" if chosen["device"] == "cpu" else f" and {self.machine['device']}"
        return (
            f"{self.model['type']}, {self.model['layers']} layers of {self.model['hidden']}, random weights, "
            f"fp32{', autocast in bf16' if chosen['bf16'] else ''}{compiled}; batches of {chosen['batch']}, "
            f"{'all of' if chosen['full_length'] else 'up to'} {chosen['max_tokens']} tokens, grouped by length; LoRA "
            f"rank {chosen['lora_r']}; {chosen['rounds']} rounds.{clock}\n"
            f"{self.machine['cores']} cores ({self.machine['processor']}){device}, {self.machine['threads']} threads, "
            f"load {load if load is None else f'{load:.1f}'} before; torch {self.versions['torch']}, transformers "
            f"{self.versions['transformers']}, peft {self.versions['peft']}."
        )


def _or_dash(value: float | None, scale: float, form: str) -> str:
    return "-" if value is None else format(value * scale, form)
