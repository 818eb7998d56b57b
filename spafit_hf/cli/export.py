"""spafit export: the same adapter in another form."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `export`; `run` carries it out."""
    parser = subparsers.add_parser(
        "export",
        help="write an adapter in the form that plain PEFT reads, or as bare deltas",
        description="Write the same adapter in another form.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="adapter folder or repository")
    parser.add_argument("output", metavar="OUTPUT", help="folder to write; it must not exist or be empty")
    parser.add_argument(
        "--to",
        choices=("peft", "native"),
        required=True,
        help="peft: plain PEFT reads it; native: the deltas as they are",
    )
    parser.add_argument(
        "--base", help="the base, if not the one that the adapter names; embedded for the one from PyPI"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Export and say what was written."""
    from spafit_hf.adapter import export_adapter

    form = export_adapter(args.base, args.folder, args.output, args.to)
    print(f"adapter of form {form!r} written to {args.output}")
