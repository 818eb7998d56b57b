"""python -m benchmarks.steps: what a training step costs, beside stock PEFT and full fine-tuning, on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

EPILOG = """\
examples:
  python -m benchmarks.steps                                                        a small BERT, a few minutes
  python -m benchmarks.steps --base google-bert/bert-large-cased --rounds 24 --json bench.json --picture bench.png
  python -m benchmarks.steps --strategies spafit-8-12-I --threads 1 --clock cpu     a machine that others use

Where PyTorch sees a GPU, it is measured there: in fp32, in bf16, compiled, and at batches of growing size until memory
ends.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps",
        description="Measure training steps of every method side by side, with random weights.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", default="", help="Hub id, folder or config.json; only its configuration is read")
    parser.add_argument(
        "--strategies", nargs="+", default=None, metavar="NAME", help="default: spafit-4-9-II spafit-8-16-II"
    )
    parser.add_argument(
        "--baselines", nargs="+", default=None, metavar="NAME", help="default: full bitfit lora-I lora-II"
    )
    parser.add_argument(
        "--own", nargs="*", default=None, metavar="NAME", help="baselines to run through this package too"
    )
    parser.add_argument("--rounds", type=int, default=12, help="steps of each method (default: 12)")
    parser.add_argument("--batch", type=int, default=8, help="examples per step (default: 8)")
    parser.add_argument("--batches", type=int, default=8, help="different batches, grouped by length (default: 8)")
    parser.add_argument("--max-tokens", type=int, default=64, help="length of the longest example (default: 64)")
    parser.add_argument("--full-length", action="store_true", help="every example is of that length")
    parser.add_argument("--lora-r", type=int, default=16, help="rank of LoRA, for the baselines as well (default: 16)")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"], help="of the cache")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch (default: as it chooses)")
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: seconds that the process had a core"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure resident memory (a process each)")
    parser.add_argument("--device", default="", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--json", default="", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--picture", default="", metavar="FILE", help="draw the ratios (needs matplotlib)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Measure and print the tables.

    Raises:
        ValueError: for a setting that cannot be.
    """
    args = build_parser().parse_args(argv)
    import torch
    from transformers import logging

    from benchmarks.steps import BASELINES, STRATEGIES, BenchSettings, measure
    from benchmarks.steps.gpu import measure_gpu

    logging.set_verbosity_error()
    settings = BenchSettings(
        base=args.base,
        strategies=tuple(args.strategies or STRATEGIES),
        baselines=tuple(args.baselines or BASELINES),
        own=("lora-II",) if args.own is None else tuple(args.own),
        rounds=args.rounds,
        batch=args.batch,
        batches=args.batches,
        max_tokens=args.max_tokens,
        full_length=args.full_length,
        lora_r=args.lora_r,
        dtype=args.dtype,
        threads=args.threads,
        clock=args.clock,
        memory=not args.no_memory,
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    result = measure(settings, tell)
    print(result.table())
    if args.picture:
        result.picture(args.picture)
    facts = result.to_dict()
    if settings.device != "cpu":
        on_gpu = measure_gpu(settings, tell)
        print("\n" + on_gpu.table())
        facts["gpu"] = on_gpu.to_dict()
    if args.json:
        Path(args.json).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
