"""python -m benchmarks.steps: what a training step costs, beside stock PEFT and full fine-tuning, on this machine."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import logging

from benchmarks.rounds import CLOCKS, tell, write_json
from benchmarks.steps import BenchSettings, measure
from benchmarks.steps.ladder import climb, ladder_table
from benchmarks.steps.settings import METHODS

EPILOG = """\
examples:
  python -m benchmarks.steps                                                a small BERT, a few minutes
  python -m benchmarks.steps --base google-bert/bert-large-cased --full-length --lora-r 64 --json steps.json
  python -m benchmarks.steps --methods lora-II spafit-8-12-I --threads 1 --clock cpu     a machine that others use
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps",
        description="Measure training steps of every method side by side, in fp32 and in bf16, with random weights.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", default="", help="Hub id, folder or config.json; only its configuration is read")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=METHODS,
        metavar="NAME",
        help="lora-II, with any of full, bitfit, lora-I (stock PEFT, plain PyTorch), the same after 'spafit_hf ' (by "
        f"it), strategies; default: {', '.join(METHODS)}",
    )
    parser.add_argument("--rounds", type=int, default=12, help="steps of each method (default: 12)")
    parser.add_argument("--batch", type=int, default=8, help="examples per step (default: 8)")
    parser.add_argument("--max-tokens", type=int, default=64, help="length of the longest example (default: 64)")
    parser.add_argument("--full-length", action="store_true", help="one batch, every example of that length")
    parser.add_argument("--lora-r", type=int, default=16, help="rank of LoRA, for the baselines as well (default: 16)")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch (default: as it chooses)")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: seconds that the process had a core")
    parser.add_argument("--no-bf16", action="store_true", help="fp32 alone")
    parser.add_argument("--no-memory", action="store_true", help="do not measure resident memory (a process each)")
    parser.add_argument("--device", default="", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--compile", default="", metavar="BACKEND", help="bf16 compiled as well, such as by inductor")
    parser.add_argument(
        "--up-to", type=int, default=0, metavar="BATCH", help="also batches of 4 times the size each, up to this one"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Measure and print the tables.

    Raises:
        ValueError: for a setting that cannot be.
    """
    args = build_parser().parse_args(argv)
    logging.set_verbosity_error()
    settings = BenchSettings(
        base=args.base,
        methods=tuple(args.methods),
        rounds=args.rounds,
        batch=args.batch,
        batches=1 if args.full_length else BenchSettings.batches,
        max_tokens=args.max_tokens,
        full_length=args.full_length,
        lora_r=args.lora_r,
        threads=args.threads,
        clock=args.clock,
        memory=not args.no_memory,
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        bf16=not args.no_bf16,
        compile=args.compile,
    )
    result = measure(settings, tell)
    print(result.table(), flush=True)
    facts: dict[str, Any] = result.to_dict()
    if args.json:
        write_json(args.json, facts)
    rungs = []
    for rung in climb(settings, args.up_to, tell) if args.up_to else ():
        rungs.append(rung)
        if args.json:  # after each, so that a run that is cut short has lost nothing
            write_json(args.json, facts | {"ladder": [dataclasses.asdict(each) for each in rungs]})
    if rungs:
        print("\n" + ladder_table(rungs))


if __name__ == "__main__":
    main()
