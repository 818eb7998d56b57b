"""Strata as a drawing in letters: a row per layer, from the input to the head, and a column per sub-layer.

           attention  | feed-forw.
    layer  q k v o n  | i o n
        0  . . . . .  | . . .  group 1
        1  b b b b b  | b b b  group 2
        2  L L L + .  | . b b  group 3

Plans, cards and the Space draw with this alphabet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from spafit_hf.strategy.stratum import CROSS_ROLES, EXPERT_ROLES, MIXER_ROLES, ROLES

FROZEN, BIAS, LORA, BOTH, WHOLE, ABSENT = ".", "b", "L", "+", "W", " "
BOTTLENECK, MIXED = "A", "*"
MEANINGS = {
    LORA: "LoRA", BIAS: "bias", BOTH: "LoRA and bias", BOTTLENECK: "bottleneck adapter",
    MIXED: "bottleneck adapter, and LoRA or bias", WHOLE: "every weight", FROZEN: "frozen",
}  # fmt: skip

ATTENTION, FEED_FORWARD = ROLES[:5], ROLES[5:]
COLUMNS = "q query, k key, v value, o output and n norm of the attention; i in, o out and n norm of the feed-forward"
_PARTS = (  # over the columns, their roles and letters, and what the legend adds for those that few models have
    ("attention", ATTENTION, "qkvon", ""),
    ("cross att.", CROSS_ROLES, "qkvon", "; the same of the cross attention"),
    ("feed-forw.", FEED_FORWARD, "ion", ""),
    ("mixer", MIXER_ROLES, "io", "; i in and o out of the mixer"),
    ("experts", EXPERT_ROLES, "e", "; e experts"),
)
LETTERS = {role: letter for _, roles, letters, _ in _PARTS for role, letter in zip(roles, letters, strict=True)}


def mark(lora: bool, bias: bool, bottleneck: bool = False) -> str:
    """The letter of a sub-layer in which these train; a bottleneck adapter is with the one to whose output it adds."""
    if bottleneck:
        return MIXED if lora or bias else BOTTLENECK
    return BOTH if lora and bias else LORA if lora else BIAS if bias else FROZEN


def roles_to_draw(there: Iterable[str]) -> tuple[str, ...]:
    """The roles that have a column where these are there: those of BERT, and all of what few models have."""
    known = {*ROLES, *there}
    return tuple(role for _, roles, _, _ in _PARTS if known.intersection(roles) for role in roles)


def columns(roles: Iterable[str]) -> str:
    """What the columns of these roles are."""
    drawn = {*roles}
    return COLUMNS + "".join(more for _, each, _, more in _PARTS if drawn.issuperset(each))


def draw(rows: Iterable[tuple[int, Mapping[str, str], str]], roles: Sequence[str] = ROLES) -> list[str]:
    """The drawing of one stack: each layer's number, the mark of each of `roles`, and what stands beside it."""
    parts = [(over, each) for over, each, _, _ in _PARTS if {*roles}.issuperset(each)]
    titles = "  | ".join(f"{over:{2 * len(each) - 1}}" for over, each in parts)

    def line(name: str, marks: Mapping[str, str], beside: str) -> str:
        drawn = "  | ".join(" ".join(marks[role] for role in each) for _, each in parts)
        return f"{name:>5}  {drawn}  {beside}".rstrip()

    body = [line(str(layer), marks, beside) for layer, marks, beside in rows]
    return [f"{'':5}  {titles}".rstrip(), line("layer", LETTERS, ""), *body]
