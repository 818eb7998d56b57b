"""spafit forgetting: what fine-tuned models forgot of their base."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from spafit_hf.files import check_file
from spafit_hf.words import SpafitError

if TYPE_CHECKING:
    from spafit_hf.run import RunData

EPILOG = """\
Texts come from --text, or are those of the first probe, or else movie reviews from PyPI. Another task's probe is
learned from the frozen states of the base and of each model. forgetting.json in a model's folder, written by --json,
becomes a section of its card (spafit card FOLDER).

examples:
  spafit forgetting runs/sst2 --probe_task stsb --data_dir ./glue --json runs/sst2/forgetting.json
  spafit forgetting full=runs/full spafit=runs/sst2 --base embedded --text sentences.txt --picture drift.png
  spafit forgetting runs/sst2 --probe_file rows.csv --text_columns text --label_column label
"""

MOST_BYTES, MOST_CHARACTERS = 2**24, 2**16
"""Of a file of texts, and of a text."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `forgetting`; `run` carries it out."""
    parser = subparsers.add_parser(
        "forgetting",
        help="measure what fine-tuned models forgot of their base",
        description="Hold adapters, switched on and off, and whole fine-tuned models against the base: tensors, "
        "states per layer, likelihood of a text, and how well another task can be learned from the states.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help="of an adapter or a model, or name=folder")
    parser.add_argument("--base", help="what they were tuned from, if not what an adapter names; or embedded")
    parser.add_argument("--text", type=Path, help="file of texts, one per line; empty lines are passed over")
    parser.add_argument("--max_texts", type=int, default=200, help="read so many, chosen at random (default: 200)")
    parser.add_argument("--probe_task", action="append", default=[], help="a GLUE task; may be given again")
    parser.add_argument("--data_dir", default="", help="folder with <task>/train.parquet and validation.parquet")
    parser.add_argument("--probe_file", default="", help="CSV, TSV, JSON, JSONL or parquet file of a task")
    parser.add_argument("--text_columns", default="", help="its text column, or two: premise,hypothesis")
    parser.add_argument("--label_column", default="", help="its label column")
    parser.add_argument("--max_probe_rows", type=int, default=1000, help="of each task (default: 1000)")
    parser.add_argument("--max_length", type=int, default=128, help="tokens per text (default: 128)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--picture", type=Path, help="draw the drift of each layer into this PNG file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, and write what was asked for."""
    from spafit_hf.card.forgetting import forgetting_page
    from spafit_hf.choose.drift_picture import draw_drift
    from spafit_hf.choose.forgetting import measure
    from spafit_hf.cli.predict import named
    from spafit_hf.data.glue import get_task
    from spafit_hf.run import DataArguments, load_data, quiet

    folders = named(args.folders)
    if args.max_texts < 2 or args.max_probe_rows < 1:
        raise SpafitError("--max_texts must be 2 or more, and --max_probe_rows 1 or more.")
    for flag, reader in {"data_dir": "probe_task", "text_columns": "probe_file", "label_column": "probe_file"}.items():
        if getattr(args, flag) and not getattr(args, reader):
            raise SpafitError(f"--{flag} is for --{reader}, which was not given; leave it out.")
    for file in filter(None, (args.json, args.picture)):
        check_file(file, args.text, args.probe_file)
    if args.json and args.json == args.picture:
        raise SpafitError(f"--json and --picture are both {args.json}; name two files.")
    most = args.max_probe_rows
    given = [
        DataArguments(task=get_task(task).name, data_dir=args.data_dir, max_validation_rows=most)
        for task in args.probe_task
    ]
    if args.probe_file:
        columns = {"text_columns": args.text_columns, "label_column": args.label_column}
        given.append(DataArguments(validation_file=args.probe_file, max_validation_rows=most, **columns))
    with quiet():
        probes = [load_data(each, need_train=False) for each in given]
        report = measure(folders, args.base, *_texts(args, probes), probes, max_length=args.max_length)
    print(forgetting_page(report))
    if args.json:
        args.json.write_text(report.to_json(), encoding="utf-8")
    if args.picture:
        draw_drift(report, args.picture)


def _texts(args: argparse.Namespace, probes: list[RunData]) -> tuple[str, list[str]]:
    """Where the texts are from, and they: each once, and so many of them chosen at random."""
    import numpy as np

    from spafit_hf.choose.forgetting import SEED

    if args.text:
        name, found = args.text.name, read_texts(args.text)
    elif probes:
        data = probes[0]
        split = data.text.evaluation_splits[0]
        rows = data.text.splits[split]
        name, found = f"{data.title}, {split}", [text for column in data.text.columns for text in rows[column][:]]
    else:
        from spafit_hf.data.reviews import TEXT, load_movie_reviews

        name, found = "movie reviews", load_movie_reviews()["validation"][TEXT]
    texts = [*dict.fromkeys(found)]
    if len(texts) < 2:
        raise SpafitError(f"{name} holds {len(texts)} texts; at least two different ones are needed.")
    chosen = sorted(np.random.default_rng(SEED).permutation(len(texts))[: args.max_texts])
    return name, [texts[index] for index in chosen]


def read_texts(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        SpafitError: for a file that is not there, is no text in UTF-8, or too large.
    """
    from spafit_hf.files import size_of

    size = size_of(path)
    if size is None or size > MOST_BYTES:
        found = "is not there" if size is None else f"has {size:,} bytes; at most {MOST_BYTES:,} are read"
        raise SpafitError(f"the file of texts {path} {found}.")
    try:
        # Only where lines end, and not where str.splitlines() sees an end inside of them.
        lines = [line.strip() for line in path.read_bytes().decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise SpafitError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    longest = max(map(len, lines))
    if longest > MOST_CHARACTERS:
        raise SpafitError(f"a line of {path} has {longest:,} characters; at most {MOST_CHARACTERS:,} are read.")
    return [line for line in lines if line]
