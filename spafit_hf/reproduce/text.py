"""Names and numbers as the report shows them; scores and differences in points, of which 100 are perfect."""

from __future__ import annotations

from spafit_hf.reproduce.statistics import Difference
from spafit_hf.words import method_title

MISSING = "missing"


def title(method: str) -> str:
    """A method's name for a reader; the controls' names say what is controlled."""
    name = method.removesuffix("-uncached")
    named = {"lora-II-equal": "LoRA-II, equal parameters", "random-cut": "SPAFIT, random cut"}
    return named.get(name, method_title(name)) + ("" if name == method else ", no prefix cache")


def points(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"


def signed(share: float | None) -> str:
    return MISSING if share is None else f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0: no -0.0


def interval(difference: Difference) -> str:
    """-0.6 (-1.8 to +0.5)."""
    return f"{signed(difference.mean)} ({signed(difference.low)} to {signed(difference.high)})"


def rate_text(rate: float | None) -> str:
    """0.001 is 1e-3."""
    if rate is None:
        return MISSING
    digits, exponent = f"{rate:e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
