"""A model card from facts: what is known is said, what is not leaves no trace.

    facts -> render (metadata, usage, strata, results, limits) -> README.md

    facts      CardFacts and its parts: plain data       metadata   the YAML at the top
    render     facts -> text, by the template            usage      code that runs as printed
    write      folder -> facts, card, picture            strata     layers drawn in letters
    results    scores and steps as tables                curve      the training curve as a picture
    citation   what to cite                              limits     what not to expect
    forgetting what was forgotten, as it was measured

Needs neither torch nor a network. `python -m spafit_hf.cli card FOLDER`, or `spafit card FOLDER`, writes a card again.
"""

from __future__ import annotations

from spafit_hf.card.curve import CURVE_FILE, draw_curve
from spafit_hf.card.facts import FACTS_FILE, Base, CardError, CardFacts, Cost, Data, Layers, Score, Step
from spafit_hf.card.forgetting import FORGETTING_FILE
from spafit_hf.card.render import own_section, render_card
from spafit_hf.card.write import CARD_FILE, facts_of_folder, glue_data, layers_of, write_card

__all__ = [
    "CARD_FILE", "CURVE_FILE", "FACTS_FILE", "FORGETTING_FILE", "Base", "CardError", "CardFacts", "Cost", "Data",
    "Layers", "Score", "Step", "draw_curve", "facts_of_folder", "glue_data", "layers_of", "own_section", "render_card",
    "write_card",
]  # fmt: skip
