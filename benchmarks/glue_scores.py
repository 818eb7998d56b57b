"""SPAFIT beside full fine-tuning on GLUE: each method at the best of its learning rates, same epochs, same seed.

    python benchmarks/glue_scores.py --data_dir GLUE --output runs/glue            run what is missing, write the table
    python benchmarks/glue_scores.py --output runs/glue --table                    the table alone

A run that is done has its results.json and is not repeated, so that the command can be stopped and started again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from transformers import logging

from spafit_hf.glue import get_task
from spafit_hf.run import RESULTS_FILE, BaseArguments, DataArguments, load_data, train
from spafit_hf.training_args import SpafitTrainingArguments

LEARNING_RATES = {
    "full": (2e-5, 6e-5, 2e-4),
    "spafit-4-9-II": (1e-4, 2e-4, 4e-4),
}
RATES = 3
LORA = {"lora_r": 64, "lora_alpha": 128.0}  # the paper's


def run_grid(tasks: list[str], data_dir: str, base: str, epochs: float, output: Path) -> None:
    """Train every combination that has no results yet; `output/<task>/<strategy>/<rate>/results.json` each."""
    # The middle rate of every task first, so that a grid that is cut short has something on each.
    order = sorted(range(RATES), key=lambda index: index != RATES // 2)
    for index, task in itertools.product(order, tasks):
        for strategy, rates in LEARNING_RATES.items():
            folder = output / task / strategy / f"{rates[index]:g}"
            if (folder / RESULTS_FILE).exists():
                continue
            args = SpafitTrainingArguments(
                output_dir=str(folder),
                strategy=strategy,
                learning_rate=rates[index],
                num_train_epochs=epochs,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=64,
                weight_decay=0.01,
                warmup_steps=0.06,
                save_strategy="no",
                logging_strategy="epoch",
                disable_tqdm=True,
                seed=0,
                **LORA,  # type: ignore[arg-type]
            )
            asked = {"task": task, "max_length": 128, "learning_rate": rates[index], "epochs": epochs}
            data = load_data(DataArguments(task=task, data_dir=data_dir))
            result = train(data, BaseArguments(base=base), args, asked)
            for weights in folder.glob("model*.safetensors"):
                weights.unlink()  # 90 MB each, and the figures are what is wanted
            print(
                task,
                strategy,
                rates[index],
                result.main_figure,
                result.score,
                f"{result.train_seconds:.0f} s",
                flush=True,
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


def score(result: dict[str, Any]) -> float:
    """The main figure; 0 where it is undefined."""
    return next(iter(result["metrics"].values()))[result["main_figure"]] or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "rte", "stsb"])
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        logging.set_verbosity_error()
        run_grid(args.tasks, args.data_dir, args.base, args.epochs, args.output)
    print(table(read_grid(args.output)))


if __name__ == "__main__":
    main()
