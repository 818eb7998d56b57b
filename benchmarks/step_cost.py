"""Cost of a training step against N1, live and with the prefix cache, measured and by FLOPs: a figure to choose N1 by.

python benchmarks/step_cost.py --picture step_cost.png --json step_cost.json
python benchmarks/step_cost.py --base google-bert/bert-large-cased --rounds 24 --picture step_cost.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from transformers import logging

from spafit_hf.bench import CACHED, BenchResult, BenchSettings, measure

GROUP_2 = 4
"""Layers of group 2, whose biases train: N2 = N1 + 4, as in spafit-8-12."""


def strategy(n1: int) -> str:
    """The strategy of a border, in the paper's 24 layers."""
    return f"spafit-{n1}-{n1 + GROUP_2}-II"


def picture(result: BenchResult, borders: list[int], path: Path) -> None:
    """Draw the ratios to LoRA-II over N1."""
    found = {each.method: each for each in result.methods}
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for ending, label, color in (("", "live prefix", "#4c78a8"), (CACHED, "cached prefix", "#f58518")):
        results = [found[strategy(n1) + ending] for n1 in borders]
        ratios = [each.ratio for each in results]
        errors = [
            [each.ratio - each.ratio_quartiles[0] for each in results],
            [each.ratio_quartiles[1] - each.ratio for each in results],
        ]
        axes.errorbar(borders, ratios, yerr=errors, fmt="o-", capsize=3, color=color, label=f"{label}, measured")
        axes.plot(borders, [each.theory or 0 for each in results], "--", color=color, label=f"{label}, FLOPs")
    axes.axhline(found["full"].ratio, color="gray", ls=":", label="full fine-tuning, measured")
    axes.axhline(1, color="gray", lw=0.8)
    axes.set_xlabel(f"N1 of 24 layers (N2 = N1 + {GROUP_2}, type II)")
    axes.set_ylabel("time of a training step over that of LoRA-II")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="")
    parser.add_argument("--borders", type=int, nargs="+", default=[3, 7, 11, 15])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max_tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    settings = BenchSettings(
        base=args.base,
        strategies=tuple(map(strategy, args.borders)),
        rounds=args.rounds,
        batch=args.batch,
        max_tokens=args.max_tokens,
        threads=args.threads,
    )
    result = measure(settings, lambda line: print(line, file=sys.stderr, flush=True))
    print(result.table())
    if args.json:
        args.json.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    if args.picture:
        picture(result, args.borders, args.picture)


if __name__ == "__main__":
    main()
