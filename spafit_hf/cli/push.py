"""spafit push: an adapter folder (or a fully fine-tuned model) to the Hub, in one commit."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `push`; `run` carries it out."""
    parser = subparsers.add_parser(
        "push",
        help="push an adapter folder to the Hub",
        description="Push an adapter folder (or a fully fine-tuned model) to the Hub in one commit: weights, "
        "configurations, card, facts, curve and tokenizer, and no other file. Pushing again sends only what changed.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="what `spafit train` or trainer.save_model() wrote")
    parser.add_argument("repo", metavar="REPO", help="user/name, or name in your own namespace; made if not there")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is made")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to; made if not there")
    parser.add_argument("--pull-request", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--also", metavar="FILE", nargs="+", default=[], help="further files in the folder to push")
    parser.add_argument("--keep-card", action="store_true", help="push README.md as it is, unwritten for this repo")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Push and print where it is."""
    from dataclasses import replace

    from spafit_hf.card import CardError, facts_of_folder, write_card
    from spafit_hf.hub import full_repo_id, parcel, push_adapter

    parcel(args.folder, also=args.also)
    repo = args.repo
    if not args.keep_card:
        repo = full_repo_id(repo)  # the card says where it will be
        try:
            write_card(args.folder, replace(facts_of_folder(args.folder), repo_id=repo, revision=args.revision))
        except CardError as error:
            print(f"note: the card stays as it is: {error}")
    done = push_adapter(
        args.folder,
        repo,
        private=args.private or None,
        revision=args.revision,
        create_pr=args.pull_request,
        message=args.message,
        also=args.also,
    )
    what = f"{len(done.files)} files" if done.changed else "nothing new; it is all there"
    print(f"{done.url}\n  {what}, commit {done.commit}")
