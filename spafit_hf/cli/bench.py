"""spafit bench: what a training step costs, beside stock PEFT and full fine-tuning, on this machine."""

from __future__ import annotations

import argparse
import sys

EPILOG = """\
examples:
  spafit bench                                                        a small BERT, a minute or so
  spafit bench --base google-bert/bert-large-cased --rounds 24 --json bench.json --picture bench.png
  spafit bench --strategies spafit-4-9-II spafit-8-12-I --threads 1
"""


# argparse's own name for what add_subparsers returns; it has no public one.
def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add `bench` to the commands of `spafit`; `run` carries it out."""
    parser = subparsers.add_parser(
        "bench",
        help="measure training steps beside stock PEFT and full fine-tuning",
        description="Measure training steps of every method side by side, on the CPU, with random weights.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", default="", help="Hub id, folder or config.json; only its configuration is read")
    parser.add_argument(
        "--strategies", nargs="+", default=None, metavar="NAME", help="default: spafit-4-9-II spafit-8-16-II"
    )
    parser.add_argument("--rounds", type=int, default=12, help="steps of each method (default: 12)")
    parser.add_argument("--batch", type=int, default=8, help="examples per step (default: 8)")
    parser.add_argument("--max-tokens", type=int, default=64, help="length of the longest example (default: 64)")
    parser.add_argument("--lora-r", type=int, default=16, help="rank of LoRA, for the baselines as well (default: 16)")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"], help="of the cache")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch (default: as it chooses)")
    parser.add_argument("--json", default="", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--picture", default="", metavar="FILE", help="draw the ratios (needs matplotlib)")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure and print the table.

    Returns:
        0. Errors of the user are raised as ValueError.
    """
    from transformers import logging

    from spafit_hf.bench import STRATEGIES, BenchSettings, measure, write

    logging.set_verbosity_error()
    settings = BenchSettings(
        base=args.base,
        strategies=tuple(args.strategies or STRATEGIES),
        rounds=args.rounds,
        batch=args.batch,
        max_tokens=args.max_tokens,
        lora_r=args.lora_r,
        dtype=args.dtype,
        threads=args.threads,
    )
    result = measure(settings, lambda line: print(line, file=sys.stderr, flush=True))
    print(result.table())
    if args.json:
        write(result, args.json)
    if args.picture:
        result.picture(args.picture)
    return 0
