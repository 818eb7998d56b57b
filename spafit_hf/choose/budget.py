"""What a search and the cut that it finds may take: parameters=5M,time=30min,memory=2GB."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spafit_hf.strategy.reading import closest
from spafit_hf.words import SpafitError, listed

UNITS: dict[str, dict[str, float]] = {
    "parameters": {"": 1, "K": 1e3, "M": 1e6, "B": 1e9},
    "time": {"s": 1, "min": 60, "h": 3600},
    "memory": {"kB": 1e3, "MB": 1e6, "GB": 1e9},
}
"""Limit -> its units in parameters, seconds and bytes."""

EXAMPLES = {"parameters": "parameters=5M", "time": "time=30min", "memory": "memory=2GB"}


@dataclass(frozen=True)
class Budget:
    """Limits; None is no limit."""

    parameters: int | None = None
    """Values that may train, the head's among them."""
    time: float = 600.0
    """Seconds that the whole search may take."""
    memory: int | None = None
    """Bytes of a training step: weights, gradients, the optimizer's, activations."""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """A budget from words.

        Raises:
            SpafitError: for another limit, a limit that stands twice, or a value without a number or its unit.
        """
        found: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = (word.strip() for word in part.partition("="))
            if name not in UNITS:
                raise SpafitError(f"--budget has a limit {name!r}; allowed are {listed(UNITS)}{closest(name, UNITS)}")
            if name in found:
                raise SpafitError(f"--budget has {name} twice; keep one.")
            match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value)
            units = {unit.lower(): factor for unit, factor in UNITS[name].items()}
            amount = float(match[1]) * units.get(match[2].lower(), 0) if match else 0
            if not amount:
                named = listed(unit or "no unit" for unit in UNITS[name])
                raise SpafitError(
                    f"--budget {name} is {value!r}; it must be a number above 0 in {named}, as in {EXAMPLES[name]}."
                )
            found[name] = amount
        return cls(**{name: amount if name == "time" else int(amount) for name, amount in found.items()})  # type: ignore[arg-type]
