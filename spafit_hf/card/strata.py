"""The strata of a model as a drawing in letters, one row per layer, from the input to the head.

       attention    | feed-forward
       q  k  v  o  n | i  o  n
0-4    .  .  .  .  . | .  .  .   frozen
  5    b  b  b  b  b | b  b  b   group 2
"""

from __future__ import annotations

from collections.abc import Sequence

from spafit_hf.card.facts import CardFacts, Layers
from spafit_hf.strategy import ROLES
from spafit_hf.words import ROLE_WORDS, listing, spans

ATTENTION = ROLES[:5]
FEED_FORWARD = ROLES[5:]
LETTERS = dict(zip(ROLES, ("q", "k", "v", "o", "n", "i", "o", "n"), strict=True))
FROZEN, BIAS, LORA, BOTH = "·", "b", "L", "B"

LEGEND = {LORA: "`L` LoRA", BIAS: "`b` bias", BOTH: "`B` LoRA and bias", FROZEN: "`·` frozen"}
COLUMNS = (
    "Columns: `q` query, `k` key, `v` value, `o` output and `n` norm of the attention; `i` in, `o` out and `n` norm "
    "of the feed-forward."
)


def drawing(facts: CardFacts) -> str:
    """The drawing with its legend, as Markdown; "" where no layers are known, or nothing trains in them."""
    if not any(band.lora or band.biases for band in facts.layers):
        return ""
    stacks = list(dict.fromkeys(band.stack for band in facts.layers))
    blocks = [_block(facts, stack, titled=len(stacks) > 1) for stack in stacks]
    used = {mark for band in facts.layers for role in ROLES for mark in _mark(band, role)}
    legend = listing([text for mark, text in LEGEND.items() if mark in used])
    lines = ["```text", *"\n\n".join(blocks).splitlines(), "```", "", f"{legend}. {COLUMNS}"]
    return "\n".join(lines)


def _block(facts: CardFacts, stack: str, *, titled: bool) -> str:
    bands = [band for band in facts.layers if band.stack == stack]
    rows = {layer: band for band in bands for layer in band.layers}
    width = max(len("layer"), *(len(str(layer)) for layer in rows))
    lines = [stack] if titled else []
    lines.append(f"{'':{width}}  attention  | feed-forw.")
    lines.append(
        f"{'layer':{width}}  {' '.join(LETTERS[r] for r in ATTENTION)}  | {' '.join(LETTERS[r] for r in FEED_FORWARD)}"
    )
    before: Layers | None = None
    for layer, band in sorted(rows.items()):
        cells = [" ".join(_mark(band, role) for role in roles) for roles in (ATTENTION, FEED_FORWARD)]
        name = f"  {band.name}" if band is not before else ""
        lines.append(f"{layer:>{width}}  {cells[0]}  | {cells[1]}{name}".rstrip())
        before = band
    if facts.head and stack == list(dict.fromkeys(b.stack for b in facts.layers))[-1]:
        lines.append(f"{'head':>{width}}  trains whole")
    return "\n".join(lines)


def _mark(band: Layers, role: str) -> str:
    lora, bias = role in band.lora, role in band.biases
    return BOTH if lora and bias else LORA if lora else BIAS if bias else FROZEN


def in_words(facts: CardFacts) -> str:
    """What trains where, as clauses: "layers 0 to 4 stay as they are, layers 5 to 9 train their biases, ..."."""
    several = len({band.stack for band in facts.layers}) > 1
    clauses = []
    for band in facts.layers:
        if not band.layers:
            continue
        noun = "layer" if len(band.layers) == 1 else "layers"
        where = f"{band.stack} {noun}" if several else noun
        clauses.append(f"{where} {spans(band.layers)} {_clause(band)}")
    if facts.outer_biases:
        clauses.append("the biases outside the layers train too")
    return "; ".join(clauses)


def _clause(band: Layers) -> str:
    one = len(band.layers) == 1
    if not band.lora and not band.biases:
        return "stays as it is" if one else "stay as they are"
    parts = []
    if band.lora:
        rank = f" of rank {band.r}" if band.r else ""
        parts.append(f"LoRA{rank} on {listing(_words(band.lora))}")
    if band.biases:
        parts.append(_biases(band.biases))
    return f"{'trains' if one else 'train'} {' and '.join(parts)}"


def _biases(roles: Sequence[str]) -> str:
    if set(roles) == set(ROLES):
        return "every bias"
    if set(roles) == set(FEED_FORWARD):
        return "the biases of the feed-forward"
    return f"the bias of {listing(_words(roles))}"


def _words(roles: Sequence[str]) -> list[str]:
    return [ROLE_WORDS[role] for role in ROLES if role in roles]
