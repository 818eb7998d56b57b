"""Strata as a drawing in letters: a row per layer, from the input to the head, and a column per sub-layer.

           attention  | feed-forw.
    layer  q k v o n  | i o n
        0  . . . . .  | . . .  group 1
        1  b b b b b  | b b b  group 2
        2  L L L + .  | . b b  group 3

Plans, cards and the Space draw with this alphabet.
"""

from __future__ import annotations

from collections.abc import Iterable

from spafit_hf.strategy.stratum import EVERY_ROLE, ROLES

FROZEN, BIAS, LORA, BOTH, WHOLE, ABSENT = ".", "b", "L", "+", "W", " "
BOTTLENECK, MIXED = "A", "*"
MEANINGS = {
    LORA: "LoRA", BIAS: "bias", BOTH: "LoRA and bias", BOTTLENECK: "bottleneck adapter",
    MIXED: "bottleneck adapter, and LoRA or bias", WHOLE: "every weight", FROZEN: "frozen",
}  # fmt: skip

ATTENTION, FEED_FORWARD = ROLES[:5], ROLES[5:]
LETTERS = dict(zip(EVERY_ROLE, "qkvonionio", strict=True))
COLUMNS = "q query, k key, v value, o output and n norm of the attention; i in, o out and n norm of the feed-forward"
MIXER_COLUMNS = "; i in and o out of the mixer"


def mark(lora: bool, bias: bool, bottleneck: bool = False) -> str:
    """The letter of a sub-layer in which these train; a bottleneck adapter is with the one to whose output it adds."""
    if bottleneck:
        return MIXED if lora or bias else BOTTLENECK
    return BOTH if lora and bias else LORA if lora else BIAS if bias else FROZEN


def draw(rows: Iterable[tuple[int, str, str]]) -> list[str]:
    """The drawing of one stack: each layer's number, its marks in the order of `ROLES`, and what stands beside it.

    With marks for each of `EVERY_ROLE` there is a column for mixers.
    """
    drawn = [(str(layer), marks, beside) for layer, marks, beside in rows]
    columns = max((len(marks) for _, marks, _ in drawn), default=len(ROLES))
    over = f"{'':5}  attention  | feed-forw." + "  | mixer" * (columns > len(ROLES))
    return [over, *(_line(*row) for row in [("layer", "".join(LETTERS.values())[:columns], ""), *drawn])]


def _line(name: str, marks: str, beside: str) -> str:
    parts = (
        " ".join(part)
        for part in (marks[: len(ATTENTION)], marks[len(ATTENTION) : len(ROLES)], marks[len(ROLES) :])
        if part
    )
    return f"{name:>5}  {'  | '.join(parts)}  {beside}".rstrip()
