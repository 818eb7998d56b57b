"""Bottleneck adapters: a small network of two matrices beside the pretrained ones, whose output is added.

    series     h ---------------------+--> h + s up(f(down(h)))       h: output of the attention's or the
               +--> down, f, up, s ---+                               feed-forward's last matrix

    parallel   x --> feed-forward --> y --+--> y + s up(f(down(x)))   x, y: input and output of the feed-forward
               +--> down, f, up, s -------+

Both are added before the residual, and have biases on down and up. `series` is Houlsby et al.'s (arXiv:1902.00751,
section 2.1), two in a layer; `parallel` is He et al.'s (arXiv:2110.04366, section 3.3), one in a layer. What a stratum
does not state is as in DoubleSeqBnConfig and ParBnConfig of the library adapters 1.3.0 (its file
configuration/adapter_config.py): swish, 1/16 of the width, s = 1; relu, 1/2, s = 4; no norms of their own. There the
dropout after the last matrix comes before the bottleneck is added, here after; without dropout both compute the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spafit_hf.strategy.reading import closest, field_names, is_int, is_number, refuse_unknown_keys
from spafit_hf.words import listed

KINDS = ("series", "parallel")
ACTIVATIONS = ("relu", "gelu", "swish", "tanh")
MAX_REDUCTION = 2**16


@dataclass(frozen=True, kw_only=True)
class BottleneckSettings:
    """The bottleneck adapters of some layers.

    Raises:
        ValueError: for an unknown kind or activation, and numbers out of bounds.
    """

    kind: str
    """series: after attention output and feed-forward output; parallel: beside the feed-forward."""
    reduction: int
    """Inputs per unit of the narrow layer, which has inputs // reduction units, at least one."""
    activation: str
    """One of `ACTIVATIONS`."""
    scaling: float
    """Factor on what is added."""

    def __post_init__(self) -> None:
        for name, allowed in (("kind", KINDS), ("activation", ACTIVATIONS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"bottleneck: {name} is {value!r}; allowed are {listed(allowed)}{closest(str(value), allowed)}"
                )
        if not is_int(self.reduction) or not 1 <= self.reduction <= MAX_REDUCTION:
            raise ValueError(
                f"bottleneck: reduction is {self.reduction!r}; it must be an integer from 1 to {MAX_REDUCTION}, as in "
                "reduction: 16."
            )
        if not is_number(self.scaling) or not 0 < self.scaling < 2**16:
            raise ValueError(
                f"bottleneck: scaling is {self.scaling!r}; it must be a number above 0 and below {2**16}, as in "
                "scaling: 4.0."
            )

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the modules to whose output one is added."""
        return ("attention_output", "output") if self.kind == "series" else ("output",)

    def shapes(self, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        """Part -> shape of each of its tensors, beside a path of so many inputs and outputs."""
        narrow = max(1, inputs // self.reduction)
        return {
            "lora_down.weight": (narrow, inputs), "lora_down.bias": (narrow,),
            "lora_up.weight": (outputs, narrow), "lora_up.bias": (outputs,),
        }  # fmt: skip

    def what(self) -> str:
        """In a few words: "series bottlenecks of 1/16 swish"."""
        scaling = f" scaling={self.scaling:g}" if self.scaling != 1 else ""
        return f"{self.kind} bottlenecks of 1/{self.reduction} {self.activation}{scaling}"

    def to_dict(self) -> dict[str, Any]:
        """As a dict of JSON types; `from_dict` gives equal settings back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BottleneckSettings:
        """Inverse of `to_dict`. Only `kind` is required; the others are by default those of its library preset.

        Raises:
            ValueError: for a missing or unknown key or kind, and whatever the fields refuse.
        """
        refuse_unknown_keys(data, field_names(cls), "bottleneck")
        kind = data.get("kind")
        if kind not in KINDS:
            raise ValueError(f"bottleneck: kind is {kind!r}; allowed are {listed(KINDS)}.")
        return cls(**{**vars(SERIES if kind == "series" else PARALLEL), **data})


SERIES = BottleneckSettings(kind="series", reduction=16, activation="swish", scaling=1.0)
PARALLEL = BottleneckSettings(kind="parallel", reduction=2, activation="relu", scaling=4.0)


@dataclass(frozen=True, kw_only=True)
class Bottleneck(BottleneckSettings):
    """One bottleneck adapter of a model, on the module whose output it is added to."""

    reads: str = ""
    """Full name of the module whose input a parallel one reads; "" for one in series, which reads what it is added
    to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.reads, str) or bool(self.reads) != (self.kind == "parallel"):
            raise ValueError(
                f"bottleneck: reads is {self.reads!r}; it must name a module for a parallel one, and be '' in series."
            )
