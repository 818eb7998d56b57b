"""spafit pull: an adapter from the Hub into a folder, checked, and nothing of it run."""

from __future__ import annotations

import argparse

from spafit_hf.words import printable


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `pull`; `run` carries it out."""
    parser = subparsers.add_parser(
        "pull",
        help="download an adapter from the Hub and check it",
        description="Download the files of an adapter (and no other file of the repository) at one commit, and check "
        "that they are what they say. Nothing in them is run.",
    )
    parser.add_argument("repo", metavar="REPO", help="user/name")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", help="folder to copy to; by default the Hub's cache")
    parser.add_argument("--revision", help="branch, tag or commit; the default branch if not given")
    parser.add_argument("--max-bytes", type=int, metavar="N", help="refuse a larger one; 2 GiB by default")
    parser.add_argument("--unchecked", action="store_true", help="do not check what is in the files")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Pull, check, and print where it is and which commit."""
    from spafit_hf.hub import pull_adapter
    from spafit_hf.hub.pull import MAX_BYTES

    limit = MAX_BYTES if args.max_bytes is None else args.max_bytes
    done = pull_adapter(args.repo, revision=args.revision, folder=args.folder, max_bytes=limit)
    print(f"{done.folder}\n  {done.repo_id}, {done.revision} at commit {done.commit}")
    print(f"  {', '.join(done.files)}")
    if not args.unchecked:
        from spafit_hf.adapter import verify_adapter

        found = verify_adapter(done.folder)
        base = printable(found.base.name_or_path or "a base that it does not name")
        parts = f"{len(found.lora)} modules with LoRA, {len(found.bias_modules)} biases"
        parts += f", {len(found.bottlenecks)} bottlenecks" if found.bottlenecks else ""
        print(f"  checked: adapter of {base}, {parts}")
