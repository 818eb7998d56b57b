"""spafit suggest: where to cut a base for a task, from data and within a budget."""

from __future__ import annotations

import argparse
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from spafit_hf.choose.budget import Budget
from spafit_hf.choose.options import SCORES, Options
from spafit_hf.cli.evaluate import WORDS

EPILOG = """\
Probes of each layer's states propose N1, gradients at a trained head N2 and the biases that pay. Four to eight cuts,
some of the paper's and a random one among them, are halved on a growing number of rows with three seeds; the one that
is left is compared with spafit-4-9-II. The same command goes on where it was stopped.

examples:
  spafit suggest embedded --task mrpc --data_dir ./glue --budget parameters=5M,time=30min --output_dir runs/cut
  spafit suggest google-bert/bert-large-cased --train_file reviews.csv --budget memory=6GB,time=2h --output_dir cut
  spafit train --task mrpc --data_dir ./glue --base embedded --strategy runs/cut/strategy.yaml --output_dir runs/mrpc
"""

ROWS = {
    **WORDS,
    "task": "a GLUE task",
    "validation_file": "the same, to compare on",
    "label_column": "the label column",
    "data_dir": "folder with <task>/train.parquet and validation.parquet",
    "train_file": "CSV, TSV, JSON, JSONL or parquet file to train on",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `suggest`; `run` carries it out."""
    parser = subparsers.add_parser(
        "suggest",
        help="choose where to cut a base for a task, from data and within a budget",
        description="Choose where to cut a base for a task: what to freeze, where biases train, where LoRA.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", metavar="BASE", help="Hub id or folder of the pretrained model; or embedded")
    for name, text in ROWS.items():
        parser.add_argument(f"--{name}", default="", help=text)
    parser.add_argument("--regression", choices=("true", "false"), help="whether the label is a number to predict")
    for name in ("max_train_rows", "max_validation_rows"):
        parser.add_argument(f"--{name}", type=int, default=0, help="use so many rows, chosen at random (default: all)")
    limits = "parameters= that may train (K, M, B), time= of the search (s, min, h; default: 10min), memory= of a step"
    parser.add_argument("--budget", default="", metavar="LIMITS", help=f"{limits} (kB, MB, GB); joined by commas")
    for item in fields(Options):
        how: dict[str, Any] = {"action": "store_true"}
        if not isinstance(item.default, bool):
            how = {"type": type(item.default), "default": item.default}
            how["choices"] = SCORES if item.name == "score" else None
        shown = "" if isinstance(item.default, bool) else f" (default: {item.default})"
        parser.add_argument(f"--{item.name}", help=item.metadata["help"] + shown, **how)
    parser.add_argument("--output_dir", required=True, help="folder of the search and of what it finds")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Search, and print what was found."""
    budget = Budget.parse(args.budget)
    # Imported here so that `spafit --help` does not wait for torch.
    from spafit_hf.choose.report import summary
    from spafit_hf.choose.suggest import suggest
    from spafit_hf.run import DataArguments, quiet

    given, options = (
        {item.name: getattr(args, item.name) for item in fields(kind) if hasattr(args, item.name)}
        for kind in (DataArguments, Options)
    )
    given["regression"] = None if args.regression is None else args.regression == "true"
    output, show = Path(args.output_dir), partial(print, flush=True)
    with quiet():
        found = suggest(args.base, DataArguments(**given), budget, output, Options(**options), show)
    print(f"\n{summary(found)}")
