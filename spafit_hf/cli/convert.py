"""spafit merge and spafit export: an adapter and its base as one plain model, or the same adapter in another form."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `merge` and `export`, which `merge` and `export` carry out."""
    merging = subparsers.add_parser(
        "merge",
        help="write base and adapter as one plain transformers folder",
        description="Write base, adapter and head as one plain folder, which pipeline() loads without PEFT.",
    )
    exporting = subparsers.add_parser(
        "export",
        help="write an adapter in the form that plain PEFT reads, or as bare deltas",
        description="Write the same adapter in another form.",
    )
    for parser, run in ((merging, merge), (exporting, export)):
        parser.add_argument("folder", metavar="FOLDER", help="adapter folder or repository")
        parser.add_argument("output", metavar="OUTPUT", help="folder to write; it must not exist or be empty")
        parser.add_argument("--base", help="the base, if not the one that the adapter names; or embedded")
        parser.set_defaults(run=run)
    words = "peft: plain PEFT reads it; native: the deltas as they are"
    exporting.add_argument("--to", choices=("peft", "native"), required=True, help=words)


def merge(args: argparse.Namespace) -> None:
    """Merge and say what was written."""
    from spafit_hf.adapter import merge_adapter
    from spafit_hf.run import quiet

    with quiet():
        model = merge_adapter(args.base, args.folder, args.output)
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters written to {args.output}")


def export(args: argparse.Namespace) -> None:
    """Export and say what was written."""
    from spafit_hf.adapter import export_adapter
    from spafit_hf.run import quiet

    with quiet():
        form = export_adapter(args.base, args.folder, args.output, args.to)
    print(f"adapter of form {form!r} written to {args.output}")
