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

from spafit_hf.glue import get_task
from spafit_hf.run import RESULTS_FILE, BaseArguments, DataArguments, load_data, train
from spafit_hf.training_args import NOT_SET, SpafitTrainingArguments

LEARNING_RATES = {
    "full": (5e-5, 1e-4, 2e-4),
    "spafit-4-9-II": (5e-4, 1e-3, 2e-3),
}
RATES = 3
LORA = {"lora_r": 16, "lora_alpha": 16.0}
#: The head's learning rate over the others', where the pooler is frozen: that of the embedded base was never trained,
#: and what it gives to the head is ten times smaller than from a trained one. Full fine-tuning trains the pooler.
HEAD = 10


def run_grid(asked: argparse.Namespace) -> None:
    """Train every combination that has no results yet; `output/<task>/<strategy>/<rate>/results.json` each."""
    # The middle rate of every task first, so that a grid that is cut short has something on each.
    order = sorted(range(RATES), key=lambda index: index != RATES // 2)
    for index, task in itertools.product(order, asked.tasks):
        for strategy in asked.strategies:
            rate = LEARNING_RATES[strategy][index]
            folder = asked.output / task / strategy / f"{rate:g}"
            if (folder / RESULTS_FILE).exists():
                continue
            args = SpafitTrainingArguments(
                output_dir=str(folder),
                strategy=strategy,
                learning_rate=rate,
                head_learning_rate=NOT_SET if strategy == "full" else HEAD * rate,
                num_train_epochs=asked.epochs,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=64,
                weight_decay=0.01,
                warmup_steps=0.06,
                bf16=asked.bf16,
                use_cpu=asked.cpu,
                save_strategy="no",
                eval_strategy="epoch",
                logging_strategy="epoch",
                disable_tqdm=True,
                seed=0,
                **LORA,  # type: ignore[arg-type]
            )
            data = load_data(DataArguments(task=task, data_dir=asked.data_dir))
            words = {"task": task, "base": asked.base, "max_length": 128, **_changed(args)}
            result = train(data, BaseArguments(base=asked.base), args, words)
            for weights in folder.glob("model*.safetensors"):
                weights.unlink()  # 90 MB each, and the figures are what is wanted
            print(f"{task} {strategy} {rate:g}: {result.main_figure} {result.score}", flush=True)


def _changed(args: SpafitTrainingArguments) -> dict[str, Any]:
    names = ("learning_rate", "head_learning_rate", "num_train_epochs", "bf16", "lora_r", "lora_alpha", "seed")
    return {name: getattr(args, name) for name in names}


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
    parser.add_argument("--strategies", nargs="+", default=list(LEARNING_RATES), choices=list(LEARNING_RATES))
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        logging.set_verbosity_error()
        run_grid(args)
    print(table(read_grid(args.output)))


if __name__ == "__main__":
    main()
