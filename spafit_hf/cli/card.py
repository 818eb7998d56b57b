"""spafit card: write a folder's card again, from its facts and what else lies in it."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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


def run(args: argparse.Namespace) -> None:
    """Write the card and print where it is."""
    from dataclasses import replace

    from spafit_hf.card import facts_of_folder, write_card

    language = tuple(args.language or ())
    given = {"repo_id": args.repo, "title": args.title, "license": args.license, "language": language}
    facts = replace(facts_of_folder(args.folder), **{name: value for name, value in given.items() if value})
    print(write_card(args.folder, facts, force=args.force))
