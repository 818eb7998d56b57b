"""One card per GLUE task, from the adapters of the Space: python model_cards/write.py

    space/adapters/<task>/spafit_results.json, adapter_config.json, ...  ->  model_cards/<task>.md

Each is what `spafit card` writes into the adapter's folder, with the picture linked where it lies.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spafit_hf.card import facts_of_folder, render_card
from spafit_hf.data.glue import TASKS

HERE = Path(__file__).parent
ADAPTERS = HERE.parent / "space" / "adapters"


def card_of(adapter: Path) -> str:
    """The card of an adapter of the Space, as it stands in this folder."""
    facts = facts_of_folder(adapter)
    return render_card(
        replace(facts, curve=f"../space/adapters/{adapter.name}/{facts.curve}" if facts.curve else None)
    )


def main() -> None:
    for task in TASKS:
        (HERE / f"{task}.md").write_text(card_of(ADAPTERS / task), encoding="utf-8")
        print(f"model_cards/{task}.md")


if __name__ == "__main__":
    main()
