"""The strata of a model on its card: as a drawing, and in words."""

from __future__ import annotations

from collections.abc import Sequence

from spafit_hf.card.facts import CardFacts, Layers
from spafit_hf.strategy import CROSS_ROLES, EVERY_ROLE, EXPERT_ROLES, ROLES
from spafit_hf.strategy.drawing import FEED_FORWARD, MEANINGS, columns, draw, mark, roles_to_draw
from spafit_hf.words import ROLE_WORDS, listing, one_line, plain, spans


def drawing(facts: CardFacts) -> str:
    """The drawing with its legend, as Markdown; "" where no layers are known, or nothing trains in them."""
    if not any(band.lora or band.biases or band.bottlenecks for band in facts.layers):
        return ""
    stacks = list(dict.fromkeys(band.stack for band in facts.layers))
    roles = roles_to_draw(role for band in facts.layers for role in (*band.lora, *band.biases, *band.bottlenecks))
    blocks = []
    for stack in stacks:
        title = [_in_block(stack)] if len(stacks) > 1 else []
        head = [" head  trains whole"] if facts.head and stack == stacks[-1] else []
        rows = _rows([band for band in facts.layers if band.stack == stack], roles)
        blocks.append("\n".join([*title, *draw(rows, roles), *head]))
    used = {letter for band in facts.layers for letter in _marks(band, roles).values()}
    legend = listing([f"`{letter}` {word}" for letter, word in MEANINGS.items() if letter in used])
    return "\n".join(["```text", "\n\n".join(blocks), "```", "", f"{legend}. Columns: {columns(roles)}."])


def _rows(bands: Sequence[Layers], roles: Sequence[str]) -> list[tuple[int, dict[str, str], str]]:
    # By the layer alone: a file may name one in two bands.
    named = sorted(((layer, band) for band in bands for layer in band.layers), key=lambda row: row[0])
    befores = [None, *(band for _, band in named)]
    return [
        (layer, _marks(band, roles), "" if band is before else _in_block(band.name))
        for (layer, band), before in zip(named, befores, strict=False)
    ]


def _in_block(words: str) -> str:
    """On one line, and without what would end the block of code."""
    return one_line(words.replace("`", "'"))


def _marks(band: Layers, roles: Sequence[str]) -> dict[str, str]:
    return {role: mark(role in band.lora, role in band.biases, role in band.bottlenecks) for role in roles}


def in_words(facts: CardFacts) -> str:
    """What trains where, as clauses: "layers 0 to 4 stay as they are, layers 5 to 9 train their biases, ..."."""
    several = len({band.stack for band in facts.layers}) > 1
    clauses = []
    for band in facts.layers:
        if not band.layers:
            continue
        noun = "layer" if len(band.layers) == 1 else "layers"
        where = f"{plain(band.stack)} {noun}" if several else noun
        clauses.append(f"{where} {spans(band.layers)} {_clause(band)}")
    if facts.outer_biases:
        clauses.append("the biases outside the layers train too")
    return "; ".join(clauses)


def _clause(band: Layers) -> str:
    one = len(band.layers) == 1
    if not band.lora and not band.biases and not band.bottlenecks:
        return "stays as it is" if one else "stay as they are"
    parts = []
    if band.lora:
        rank = f" of rank {band.r}" if band.r else ""
        parts.append(f"LoRA{rank} on {listing(_words(band.lora))}")
    if band.biases:
        every = dict.fromkeys(map(frozenset, (ROLES, (*ROLES, *CROSS_ROLES), EVERY_ROLE)), "every bias")
        named = {**every, frozenset(FEED_FORWARD): "the biases of the feed-forward"}
        parts.append(named.get(frozenset(band.biases), f"the bias of {listing(_words(band.biases))}"))
    if band.bottlenecks:
        # A parallel one is beside the feed-forward alone; of those in series the other is in the attention.
        series = "attention_output" in band.bottlenecks
        places = "after attention and feed-forward" if series else "beside the feed-forward"
        parts.append(f"bottleneck adapters {places}")
    return f"{'trains' if one else 'train'} {' and '.join(parts)}"


def _words(roles: Sequence[str]) -> list[str]:
    return [ROLE_WORDS[role] for role in (*EVERY_ROLE, *EXPERT_ROLES) if role in roles]
