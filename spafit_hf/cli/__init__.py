"""The command `spafit`: a module per subcommand or two, each with `add_parser(subparsers)`.

Whatever goes wrong ends with status 2 and one sentence on stderr; `SPAFIT_TRACEBACK=1` shows where it came from. What
the user can mend is a ValueError or an OSError. `argparse._SubParsersAction` is what add_subparsers returns; it has no
public name.
"""

from __future__ import annotations

import argparse
import io
import os
import sys

from spafit_hf.cli import (
    card,
    convert,
    evaluate,
    forgetting,
    plan,
    predict,
    pull,
    push,
    quickstart,
    reproduce,
    suggest,
    train,
)
from spafit_hf.cli.parser import Parser
from spafit_hf.files import is_disk_full
from spafit_hf.names import __version__
from spafit_hf.words import sentence

ONEDNN_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
ONEDNN_ENTRIES = "32"
"""What oneDNN keeps of the programs that it makes, one for each shape that it multiplies; by default a thousand,
with their buffers. In bf16 on a CPU all products are its own: steps over batches of 122 lengths, 384 wide, peaked at
2.7 GB, with 32 entries at 1.2 GB, in no more time."""

COMMANDS = (plan, suggest, train, reproduce, evaluate, forgetting, predict, convert, push, pull, card, quickstart)


def build_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand."""
    parser = Parser(
        prog="spafit", description="Fine-tune transformers in strata: SPAFIT with the Hugging Face Trainer and PEFT."
    )
    parser.add_argument("--version", action="version", version=f"spafit-hf {__version__}")
    parser.set_defaults(takes_more=False)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run `spafit` with the given arguments (those of the process by default) and return its exit status."""
    for name in ONEDNN_CACHES:  # before torch is imported
        os.environ.setdefault(name, ONEDNN_ENTRIES)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # a shell closed it, as with 2>&-
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  it stays as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding has no letter for is escaped, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not args.takes_more:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    try:
        args.run(args)
        print(end="", flush=True)  # what is left to write can fail too
        return 0
    except BrokenPipeError:  # whoever reads the output has enough of it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        return 141  # of a program that SIGPIPE ended, as a shell counts
    except KeyboardInterrupt:
        print("spafit: stopped.", file=sys.stderr)
        return 130
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # of a library in Rust, and no Exception
        if os.environ.get("SPAFIT_TRACEBACK") or not (panic or isinstance(error, Exception)):
            raise
        print(f"spafit: {explained(error)}", file=sys.stderr)
        return 2


def explained(error: BaseException) -> str:
    """What went wrong and what to do, in one sentence."""
    named = isinstance(error, OSError) and error.filename is not None and error.strerror is not None
    words = sentence(f"{error.filename}: {error.strerror}" if named else error)  # type: ignore[attr-defined]
    if is_disk_full(error):
        return f"{words}: the disk is full. Free some space, and run the command again."
    if isinstance(error, (ValueError, OSError)):
        return words
    return f"{type(error).__name__}: {words}. This was not foreseen; SPAFIT_TRACEBACK=1 shows its origin."
