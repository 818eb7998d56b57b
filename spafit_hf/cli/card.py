"""spafit card: write a folder's card again, from its facts and what else lies in it."""

from __future__ import annotations

import argparse


# argparse's own name for what add_subparsers returns; it has no public one.
def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add `card`; `run` carries it out."""
    parser = subparsers.add_parser(
        "card",
        help="write the model card of a folder again",
        description="Write README.md of an adapter or model folder from spafit_results.json, which you may edit, and "
        "from its other files. Your own section, between its two marks, stays as it is.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="of an adapter or a model")
    parser.add_argument("--repo", metavar="REPO", help="user/name that the usage speaks of")
    parser.add_argument("--title", help="of the card")
    parser.add_argument("--license", help="identifier as the Hub has them, such as apache-2.0")
    parser.add_argument("--language", nargs="+", help="codes such as en")
    parser.add_argument("--force", action="store_true", help="replace a card that was written by hand")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the card and print where it is.

    Returns:
        0. Errors of the user are raised as ValueError.
    """
    from dataclasses import replace

    from spafit_hf.card import facts_of_folder, write_card

    given = {
        "repo_id": args.repo,
        "title": args.title,
        "license": args.license,
        "language": tuple(args.language) if args.language else None,
    }
    facts = replace(facts_of_folder(args.folder), **{name: value for name, value in given.items() if value})
    print(write_card(args.folder, facts, force=args.force))
    return 0
