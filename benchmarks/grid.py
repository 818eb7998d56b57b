"""What the grids of training runs on GLUE share: flags, and a run that is made once.

A run that is done has its results.json and is not repeated, so that a grid can be stopped and started again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from spafit_hf.run import RESULTS_FILE, BaseArguments, DataArguments, load_data, train
from spafit_hf.trainer.arguments import SpafitTrainingArguments

#: The head's learning rate over the others', where the pooler is frozen: that of the embedded base was never trained,
#: and what it gives to the head is ten times smaller than from a trained one. Full fine-tuning trains the pooler.
HEAD = 10
#: Of what a run was told, what its results file says.
TOLD = ("strategy", "learning_rate", "head_learning_rate", "num_train_epochs", "bf16", "lora_r", "lora_alpha", "seed")


def flags(description: str | None, tasks: list[str]) -> argparse.ArgumentParser:
    """The flags that every grid has; its module's docstring is the help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=tasks)
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU; bf16 without one asks for it")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="only the table of what is done")
    return parser


def run_once(asked: argparse.Namespace, task: str, folder: Path, **fields: Any) -> None:
    """Train, unless the folder has results; `fields` are training arguments."""
    if (folder / RESULTS_FILE).exists():
        return
    args = SpafitTrainingArguments(
        output_dir=str(folder),
        lora_r=16,
        lora_alpha=16.0,
        num_train_epochs=asked.epochs,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        weight_decay=0.01,
        warmup_steps=0.06,
        bf16=asked.bf16,
        use_cpu=asked.cpu,
        save_strategy="no",
        logging_strategy="epoch",
        disable_tqdm=True,
        **fields,
    )
    data = load_data(DataArguments(task=task, data_dir=asked.data_dir))
    words = {"task": task, "base": asked.base, "max_length": 128} | {name: getattr(args, name) for name in TOLD}
    result = train(data, BaseArguments(base=asked.base), args, words)
    for weights in folder.glob("model*.safetensors"):
        weights.unlink()  # 90 MB each, and the figures are what is wanted
    print(f"{' '.join(folder.relative_to(asked.output).parts)}: {result.main_figure} {result.score}", flush=True)


def score(result: dict[str, Any]) -> float:
    """The main figure of a results file; 0 where it is undefined."""
    return next(iter(result["metrics"].values()))[result["main_figure"]] or 0.0
