"""spafit train: one command from a task's name to an adapter folder with its results."""

from __future__ import annotations

import argparse
import os
import shlex
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spafit_hf.cli.parser import Parser
from spafit_hf.cli.recipe import read_recipe
from spafit_hf.files import check_folder, is_disk_full
from spafit_hf.words import SpafitError, listing

if TYPE_CHECKING:
    from spafit_hf.run import RunData, RunResult
    from spafit_hf.run.train import AnyTrainer

USAGE = "spafit train [-h] [--help-all] [--verbose] [FILE.yaml] [--flag value ...]"

EPILOG = """\
Data, base and every field of transformers' TrainingArguments are flags; `spafit train --help-all` lists them.
The defaults are the paper's recipe: learning rate 6e-5, batches of 16, 10 epochs, weight decay 0.01; the epoch with
the best main figure is kept. A YAML file given first sets flags by name, and flags after it override the file.

examples:
  spafit train --task mrpc --strategy spafit-4-9-II --output_dir runs/mrpc
  spafit train --task rte --data_dir ./glue --base embedded --learning_rate 5e-4 --output_dir runs/rte
  spafit train --train_file reviews.csv --strategy bitfit --output_dir runs/reviews
  spafit train --task summarization --train_file news.jsonl --base google-t5/t5-small --output_dir runs/news
  spafit train --task causal-lm --train_file poems.txt --base openai-community/gpt2 --output_dir runs/poems
  spafit train recipe.yaml --seed 7
"""

#: The paper's recipe (arXiv:2405.00201, section 4), and what a run of it needs from Trainer.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 6e-5,
    "num_train_epochs": 10.0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "weight_decay": 0.01,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "do_train": True,
    "do_eval": True,
    "do_predict": False,
}

#: Flags of the scripts of transformers; here each does the one thing that the command does.
FIXED = ("do_train", "do_eval", "do_predict")

#: Flags whose values stay on this machine.
SECRETS = ("hub_token", "push_to_hub_token")
#: Flags that say nothing about the result.
NOT_SHOWN = ("output_dir", "logging_dir", "run_name", "hub_model_id", "push_to_hub", "disable_tqdm")

#: Flags of words between commas, which a file may hold as a list.
COMMAS = ("labels", "text_columns")
#: Flags that take what is no single value as it is.
OPEN = ("report_to", "strategy")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `train`; its flags are read by `run`, since the list of them needs transformers."""
    parser = subparsers.add_parser(
        "train",
        help="train a strategy on a GLUE task, a dataset or files; write an adapter folder",
        description="Train a strategy on labelled text, or to write text, and write an adapter folder that plain PEFT "
        "opens too.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--help-all", action="store_true", help="list every flag and stop")
    parser.add_argument("--verbose", action="store_true", help="show everything that Trainer and the libraries print")
    # The flags themselves are unknown here and reach `run` as `args.rest`.
    parser.usage = USAGE
    parser.set_defaults(run=run, takes_more=True)


def run(args: argparse.Namespace) -> None:
    """Train and print the results."""
    from transformers import HfArgumentParser

    from spafit_hf.run import BaseArguments, DataArguments, Progress, load_data, quiet, train
    from spafit_hf.run.data import greater_is_better
    from spafit_hf.trainer.arguments import SpafitSeq2SeqTrainingArguments

    kinds = (DataArguments, BaseArguments, SpafitSeq2SeqTrainingArguments)

    class Flags(Parser, HfArgumentParser):
        """A flag for each field of the dataclasses."""

    # Without the usage, which an error prints, that would be all of the flags.
    parser = Flags(kinds, prog="spafit train", usage=USAGE)  # type: ignore[arg-type]
    parser.set_defaults(**DEFAULTS)
    rest = list(args.rest)
    if args.help_all:
        parser.print_help()
        return
    if rest and rest[0].endswith((".yaml", ".yml", ".json")):
        file = rest.pop(0)
        parser.set_defaults(**_recipe(file, {item.name: item.default for kind in kinds for item in fields(kind)}))
    named, unknown = parser.parse_known_args(rest)  # TrainingArguments fill in what is left open
    if unknown:
        raise ValueError(
            f"{' '.join(unknown)}: no flag of train; see `spafit train --help-all`. A YAML file of flags goes first."
        )
    data_args, base_args, training_args = parser.parse_args_into_dataclasses(rest)
    for name in FIXED:
        if getattr(named, name) != DEFAULTS[name]:
            raise ValueError(
                f"--{name} is {getattr(named, name)}, and train always trains and measures and predicts nothing; "
                "leave it out, or see `spafit evaluate` and `spafit predict`."
            )
    check_folder(training_args.output_dir)
    with nullcontext() if args.verbose else quiet():
        data = load_data(data_args)
    if training_args.load_best_model_at_end and named.metric_for_best_model is None:
        training_args.metric_for_best_model = data.main_figure
    if named.greater_is_better is None and training_args.metric_for_best_model is not None:
        training_args.greater_is_better = greater_is_better(training_args.metric_for_best_model)
    main = training_args.process_index == 0  # of several processes one alone prints
    if main:
        print(_opening(data, base_args.base), flush=True)

    def show(trainer: AnyTrainer) -> None:
        Progress(trainer.strategy.name, data.figures).attach(trainer)
        if main and trainer.plan is not None:
            print(f"\n{trainer.plan}\n", flush=True)

    recorded = _recorded(data_args, base_args, training_args)
    command = command_line(args.rest)
    try:
        with nullcontext() if args.verbose else quiet():
            shown = () if args.verbose else (show,)
            result = train(data, base_args, training_args, recorded, command, *shown)
    except Exception as error:
        if not is_disk_full(error):
            raise
        folder = training_args.output_dir
        raise SpafitError(f"{folder} cannot be written (--resume_from_checkpoint True goes on later)") from error
    if main:
        print(summary(result, str(training_args.output_dir)))


def _recipe(file: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """The flags of a file, single values as text, since argparse looks at no other default.

    Raises:
        ValueError: for a name that is no flag, a name without a value, and several values of a flag that has one.
    """
    recipe = read_recipe(file)
    for name, value in recipe.items():
        if name not in defaults:
            raise ValueError(f"{file} sets {name!r}, which is no flag; see `spafit train --help-all`.")
        # None is what many flags have where they are left out; a folder the library would name itself.
        if value is None and (defaults[name] is not None or name == "output_dir"):
            raise ValueError(f"{file} gives {name} no value; give one, or leave the name out.")
        default = defaults[name]
        if isinstance(value, list) and name in COMMAS:
            value = ",".join(map(str, value))
        several = isinstance(value, (list, dict))
        if several and isinstance(default, (int, float, str)) and name not in OPEN:
            raise ValueError(f"{file} sets {name} to {value}; it has one value.")
        if isinstance(default, bool):
            value = {"on": True, "off": False}.get(str(value).lower(), value)
        elif value is not None and not several and not (default is None and isinstance(value, bool)):
            value = str(value)  # which argparse reads as it does what is typed
        recipe[name] = value
    return recipe


def _opening(data: RunData, base: str) -> str:
    """What is about to happen: base, rows, and what was inferred of the data."""
    measured = listing([f"{data.text.splits[name].num_rows:,} ({name})" for name in data.text.evaluation_splits])
    lines = [f"{data.title}: {data.train_rows:,} rows to train on, {measured} to measure on; base {base}"]
    return "\n".join([*lines, *(f"note: {note}" for note in data.text.notes)])


def summary(result: RunResult, folder: str) -> str:
    """What a run gave, for the terminal."""
    from spafit_hf.run import figures_text

    lines = [f"{result.strategy} on {result.data}, base {result.base}"]
    lines += [f"  {split}: {figures_text(figures)}" for split, figures in result.metrics.items()]
    share = result.trained_parameters / result.total_parameters
    lines.append(
        f"  trained {result.trained_parameters:,} of {result.total_parameters:,} parameters ({share:.2%}) "
        f"in {result.train_seconds:.0f} s; weights {result.file_bytes:,} bytes"
    )
    lines.append(f"  written to {folder}")
    return "\n".join(lines)


def command_line(flags: list[str]) -> str:
    """The command for a card, from its flags: of paths the last part alone, without secrets and where results go."""
    lines: list[list[str]] = []
    for word in flags:
        if word.startswith("--") or not lines:
            lines.append(word.split("=", 1))
        else:
            lines[-1].append(word)
    shown = [
        " ".join(shlex.quote(Path(word).name if os.path.isabs(word) or ".." in word else word) for word in line)
        for line in lines
        if (name := line[0].lstrip("-").replace("-", "_")) not in NOT_SHOWN
        # argparse takes beginnings of flags, too
        and not (line[0].startswith("--") and any(secret.startswith(name) for secret in SECRETS))
    ]
    return " \\\n  ".join(["spafit train", *shown])


def _recorded(data_args: Any, base_args: Any, training_args: Any) -> dict[str, Any]:
    """For the results: what was wanted, without defaults, secrets, and where this machine keeps things."""
    # TrainingArguments set up the devices: with others than the run's, its processes would not find each other.
    device = {name: getattr(training_args, name) for name in ("use_cpu", "ddp_backend", "ddp_timeout")}
    default = type(training_args)(output_dir=str(training_args.output_dir), **device).to_sanitized_dict()
    default |= {item.name: item.default for item in fields(training_args) if item.name in device}
    given = {**training_args.to_sanitized_dict(), "ddp_backend": training_args.ddp_backend}
    hidden = {"output_dir", "logging_dir", "run_name", "hub_token", "push_to_hub_token", "data_dir", *FIXED}
    changed = {key: value for key, value in given.items() if key not in hidden and default.get(key) != value}
    kept = {
        item.name: value
        for arguments in (data_args, base_args)
        for item in fields(arguments)
        if (value := getattr(arguments, item.name)) != item.default or value not in ("", 0, None)
    }
    return {key: value for key, value in kept.items() if key not in hidden} | changed
