"""Cost of a training step against N1, live and with the prefix cache, measured and by FLOPs: a figure to choose N1 by.

python benchmarks/step_cost.py --json step_cost.json --picture docs/step_cost.png
python benchmarks/step_cost.py --base google-bert/bert-large-cased --rounds 24 --picture step_cost.png
python benchmarks/step_cost.py --from_json step_cost.json --picture docs/step_cost.png      only draw

By default the base has BERT-large's 24 layers at half of its width, where the layers' matrices are most of a step.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from transformers import BertConfig, logging

from benchmarks.rounds import tell, write_json
from benchmarks.steps import CACHED, FIRST_TOKEN, BenchSettings, measure

GROUP_2 = 4
"""Layers of group 2, whose biases train: N2 = N1 + 4, as in spafit-8-12."""

WAYS = (
    ("", "live prefix", "#4c78a8"),
    (CACHED, "cached prefix", "#f58518"),
    (CACHED + FIRST_TOKEN, "cached, last layer for the first token", "#54a24b"),
)


def strategy(n1: int) -> str:
    """The strategy of a border, in the paper's 24 layers."""
    return f"spafit-{n1}-{n1 + GROUP_2}-II"


def picture(facts: dict[str, Any], path: Path) -> None:
    """Draw the ratios to LoRA-II over N1.

    Args:
        facts: a measurement, as JSON types.
        path: where the picture goes.
    """
    found = {each["method"]: each for each in facts["methods"]}
    borders = [int(name.split("-")[1]) for name in facts["settings"]["methods"] if name.startswith("spafit-")]
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for ending, label, color in WAYS:
        results = [found[strategy(n1) + ending] for n1 in borders if strategy(n1) + ending in found]
        if not results:
            continue
        ratios = [each["ratio"] for each in results]
        errors = [
            [each["ratio"] - each["ratio_quartiles"][0] for each in results],
            [each["ratio_quartiles"][1] - each["ratio"] for each in results],
        ]
        axes.errorbar(borders, ratios, yerr=errors, fmt="o-", capsize=3, color=color, label=f"{label}, measured")
        axes.plot(borders, [each["theory"] for each in results], "--", color=color, label=f"{label}, by FLOPs")
    axes.axhline(found["full"]["ratio"], color="gray", ls=":", label="full fine-tuning, measured")
    axes.axhline(1, color="gray", lw=0.8, label="LoRA-II in all layers (stock PEFT)")
    axes.set_xlabel(f"N1 of 24 layers (N2 = N1 + {GROUP_2}, type II)")
    axes.set_ylabel("time of a training step over that of LoRA-II")
    axes.set_xticks(borders)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, ncols=2, loc="lower left")
    model = facts["model"]
    axes.set_title(
        f"{model['type']}, {model['layers']} layers of {model['hidden']}, batches of {facts['settings']['batch']} x "
        f"{facts['settings']['max_tokens']} tokens, CPU, fp32",
        fontsize=9,
    )
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="", help="Hub id, folder or config.json")
    parser.add_argument("--width", type=int, default=512, help="of a BERT with 24 layers, where --base is left out")
    parser.add_argument("--borders", type=int, nargs="+", default=[3, 7, 11, 15])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max_tokens", type=int, default=64)
    parser.add_argument("--lora_r", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--from_json", type=Path, help="draw what was measured before")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    facts = json.loads(args.from_json.read_text(encoding="utf-8")) if args.from_json else measured(args)
    if args.json:
        write_json(args.json, facts)
    if args.picture:
        picture(facts, args.picture)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what the arguments say, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        if not args.base:
            width = args.width
            BertConfig(
                hidden_size=width,
                num_hidden_layers=24,
                num_attention_heads=width // 64,
                intermediate_size=4 * width,
                vocab_size=2000,
            ).save_pretrained(folder)
        settings = BenchSettings(
            base=args.base or folder,
            methods=("full", "lora-II", *map(strategy, args.borders)),
            rounds=args.rounds,
            batch=args.batch,
            batches=1,
            max_tokens=args.max_tokens,
            lora_r=args.lora_r,
            full_length=True,
            threads=args.threads,
            clock=args.clock,
            memory=False,
            bf16=False,
        )
        result = measure(settings, tell)
    print(result.table())
    facts = result.to_dict()
    if not args.base:
        facts["settings"]["base"] = facts["model"]["base"] = f"BERT of width {args.width}"
    return facts


if __name__ == "__main__":
    main()
