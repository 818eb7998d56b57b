"""SPAFIT beside full fine-tuning on GLUE: each method at the best of its learning rates, same epochs, same seed.

    python benchmarks/glue_scores.py --data_dir GLUE --output runs/glue            run what is missing, write the table
    python benchmarks/glue_scores.py --output runs/glue --table                    the table alone

A run that is done has its results.json and is not repeated, so that the command can be stopped and started again; with
`--strategies` one method per process. The adapters stay in their folders, with card and curve.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from transformers import logging

from benchmarks.grid import HEAD, flags, run_once, score
from spafit_hf.data.glue import get_task
from spafit_hf.run import RESULTS_FILE
from spafit_hf.trainer.arguments import NOT_SET

LEARNING_RATES = {
    "full": (5e-5, 1e-4, 2e-4),
    "spafit-4-9-II": (5e-4, 1e-3, 2e-3),
}
RATES = 3


def run_grid(asked: argparse.Namespace) -> None:
    """Train every combination that has no results yet; `output/<task>/<strategy>/<rate>/results.json` each."""
    # The middle rate of every task first, so that a grid that is cut short has something on each.
    order = sorted(range(RATES), key=lambda index: index != RATES // 2)
    for index, task in itertools.product(order, asked.tasks):
        for strategy in asked.strategies:
            rate = LEARNING_RATES[strategy][index]
            folder = asked.output / task / strategy / f"{rate:g}"
            run_once(
                asked,
                task,
                folder,
                strategy=strategy,
                learning_rate=rate,
                head_learning_rate=NOT_SET if strategy == "full" else HEAD * rate,
                eval_strategy="epoch",
                seed=0,
            )


def read_grid(output: Path) -> dict[str, dict[str, dict[float, dict[str, Any]]]]:
    """task -> strategy -> learning rate -> results."""
    grid: dict[str, dict[str, dict[float, dict[str, Any]]]] = {}
    for path in sorted(output.glob(f"*/*/*/{RESULTS_FILE}")):
        result = json.loads(path.read_text(encoding="utf-8"))
        rates = grid.setdefault(result["task"], {}).setdefault(result["strategy"], {})
        rates[result["arguments"]["learning_rate"]] = result
    return grid


def table(grid: dict[str, dict[str, dict[float, dict[str, Any]]]]) -> str:
    """The table in Markdown: every score, the best of each method, and the difference."""
    lines = [
        "| task | figure | method | by learning rate | best | difference to full | trained | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task, methods in grid.items():
        best = {name: max(score(result) for result in rates.values()) for name, rates in methods.items()}
        for strategy, rates in methods.items():
            scores = ", ".join(f"{rate:g}: {score(rates[rate]):.3f}" for rate in sorted(rates))
            difference = f"{100 * (best[strategy] - best['full']):+.1f}" if "full" in best else ""
            first = next(iter(rates.values()))
            seconds = sum(result["train_seconds"] for result in rates.values()) / len(rates)
            lines.append(
                f"| {get_task(task).title} | {first['main_figure']} | {strategy} | {scores} | {best[strategy]:.3f} "
                f"| {difference} | {first['trained_parameters']:,} | {seconds:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = flags(__doc__, ["mrpc", "rte", "stsb"])
    parser.add_argument("--strategies", nargs="+", default=list(LEARNING_RATES), choices=list(LEARNING_RATES))
    args = parser.parse_args()
    if not args.table:
        logging.set_verbosity_error()
        run_grid(args)
    print(table(read_grid(args.output)))


if __name__ == "__main__":
    main()
