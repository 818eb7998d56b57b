"""spafit merge: an adapter and its base as one plain transformers folder."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `merge`; `run` carries it out."""
    parser = subparsers.add_parser(
        "merge",
        help="write base and adapter as one plain transformers folder",
        description="Write base, adapter and head as one plain folder, which pipeline() loads without PEFT.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="adapter folder or repository")
    parser.add_argument("output", metavar="OUTPUT", help="folder to write; it must not exist or be empty")
    parser.add_argument(
        "--base", help="the base, if not the one that the adapter names; embedded for the one from PyPI"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Merge and say what was written."""
    from spafit_hf.adapter import merge_adapter

    model = merge_adapter(args.base, args.folder, args.output)
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters written to {args.output}")
