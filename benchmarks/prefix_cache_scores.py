"""What the prefix cache does to scores: the same runs with and without it, three seeds each.

    python benchmarks/prefix_cache_scores.py --data_dir GLUE --output runs/cache            run what is missing
    python benchmarks/prefix_cache_scores.py --output runs/cache --table                    the table alone

Dropout in the frozen layers is off while the cache is used; this says whether that shows. A run that is done has its
results.json and is not repeated. The states stay in `<output>/states` and serve every seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path

from transformers import logging

from benchmarks.grid import HEAD, flags, run_once, score
from spafit_hf.data.glue import get_task
from spafit_hf.run import RESULTS_FILE

SEEDS = (0, 1, 2)
WAYS = ("without", "with")


def run_grid(asked: argparse.Namespace) -> None:
    """Train every combination that has no results yet; `output/<task>/<way>/<seed>/results.json` each."""
    for task, seed, way in itertools.product(asked.tasks, SEEDS, WAYS):
        folder = asked.output / task / way / str(seed)
        run_once(
            asked,
            task,
            folder,
            strategy=asked.strategy,
            prefix_cache=str(asked.output / "states") if way == "with" else "off",
            # The same in both, so that the cache is all that differs.
            first_token_only="off",
            learning_rate=asked.learning_rate,
            head_learning_rate=HEAD * asked.learning_rate,
            seed=seed,
        )


def table(output: Path) -> str:
    """In Markdown: mean and scores of the seeds, and the difference of the means."""
    lines = ["| task | figure | without | with | difference |", "| --- | --- | --- | --- | ---: |"]
    for folder in sorted(path for path in output.glob("*") if (path / WAYS[0]).is_dir()):
        scores: dict[str, list[float]] = {}
        for way in WAYS:
            for path in sorted((folder / way).glob(f"*/{RESULTS_FILE}")):
                result = json.loads(path.read_text(encoding="utf-8"))
                figure = result["main_figure"]
                scores.setdefault(way, []).append(score(result))
        if set(scores) != set(WAYS):
            continue
        means = {way: statistics.mean(each) for way, each in scores.items()}
        cells = [f"{means[way]:.3f} ({', '.join(f'{value:.3f}' for value in scores[way])})" for way in WAYS]
        difference = f"{100 * (means['with'] - means['without']):+.1f}"
        lines.append(f"| {get_task(folder.name).title} | {figure} | {' | '.join(cells)} | {difference} |")
    return "\n".join(lines)


def main() -> None:
    parser = flags(__doc__, ["mrpc", "rte", "cola", "stsb"])
    parser.add_argument("--strategy", default="spafit-8-16-II")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args()
    if not args.table:
        logging.set_verbosity_error()
        run_grid(args)
    print(table(args.output))


if __name__ == "__main__":
    main()
