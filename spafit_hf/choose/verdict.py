"""Which cut is recommended, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spafit_hf.choose.candidates import Candidate
from spafit_hf.reproduce.statistics import Difference
from spafit_hf.reproduce.text import interval
from spafit_hf.words import share


def difference_of(comparison: Mapping[str, Any]) -> Difference:
    """The difference that a comparison holds."""
    return Difference(**{name: comparison[name] for name in ("mean", "rows", "over_seeds", "doubt", "seeds")})


def decide(
    pick: Candidate, reference: Candidate, comparison: Mapping[str, Any] | None, barred: bool
) -> tuple[str, str]:
    """The name of one of two cuts, and the reason in a sentence or two.

    The pick has to be no more than a standard error behind, in loss where every prediction is the same; of two that
    cannot be told apart the one with fewer parameters is taken.

    Args:
        pick: what the search has left.
        reference: spafit-4-9-II.
        comparison: of the two, positive where the pick is better; None where no other cut is within the budget.
        barred: whether the reference is over the budget.
    """
    if comparison is None:
        return reference.name, f"No cut but {reference.name} is within the budget."
    found = difference_of(comparison)
    by = f"{pick.name} less {reference.name}: {interval(found)} points (in brackets the 95 % interval)"
    parts = f"{pick.parameters:,} parameters, {share(pick.parameters, reference.parameters)} of {reference.name}'s"
    if found.low > 0:
        return pick.name, f"{by}. It is better, and trains {parts}."
    behind = found.mean < -found.error
    says = f"{by}. " + ("It is behind by more than one standard error" if behind else "No difference can be shown")
    if comparison["constant"]:
        gap, error = comparison["loss"], comparison["loss_error"]
        behind = gap > error
        says = (
            f"The rows that the time allowed were too few: every run of the final calls every row the same. "
            f"{pick.name} loses {gap:+.4f} more there, with a standard error of {error:.4f}"
        )
    if barred:
        return pick.name, f"{says}, and {reference.name} is over the budget."
    if behind:
        return reference.name, f"{says}, so {reference.name} is recommended."
    if pick.parameters <= reference.parameters:
        return pick.name, f"{says}, so the one with fewer parameters is recommended: {parts}."
    return reference.name, f"{says}, so the one with fewer parameters is recommended: {reference.name}."
