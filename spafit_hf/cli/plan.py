"""spafit plan MODEL [STRATEGY]: what would train, and what it would cost, from the config alone."""

from __future__ import annotations

import argparse
import json

from spafit_hf.strategy import METHODS, Strategy

EPILOG = """\
examples:
  spafit plan google-bert/bert-large-cased                          every method of the paper side by side
  spafit plan google-bert/bert-large-cased spafit-4-9-II --num-labels 3
  spafit plan ./my-model/config.json my_strategy.yaml --layers
  spafit plan meta-llama/Llama-3.2-1B --n1 3 --n2 7 --lora-r 16 --json
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `plan` to the commands of `spafit`; `run` carries it out."""
    parser = subparsers.add_parser(
        "plan",
        help="what a strategy trains in a model: parameters, file size, memory, FLOPs",
        description="Show what a strategy trains in a model and what it costs. Only the model's config is read.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="Hub id, folder, or path of a config.json")
    parser.add_argument(
        "strategy",
        metavar="STRATEGY",
        nargs="?",
        help="name such as spafit-4-9-II, or a YAML or JSON file; without it all methods of the paper are compared",
    )
    parser.add_argument("--architecture", metavar="FILE", help="where a model's parts are that are not found (YAML)")
    parser.add_argument("--num-labels", type=int, metavar="N", help="outputs of a classification head (1: regression)")
    parser.add_argument("--n1", type=int, metavar="N", help="last layer of group 1 in the model's own depth, from 0")
    parser.add_argument("--n2", type=int, metavar="N", help="last layer of group 2 in the model's own depth")
    parser.add_argument("--lora-r", type=int, metavar="R", help="rank of LoRA in each stratum that has it (paper: 64)")
    parser.add_argument("--lora-alpha", type=float, metavar="A", help="LoRA is scaled by A / R (paper: 128)")
    parser.add_argument("--batch", type=int, default=16, metavar="B", help="examples per step (default: 16)")
    parser.add_argument("--seq", type=int, default=128, metavar="S", help="tokens per example (default: 128)")
    parser.add_argument("--layers", action="store_true", help="also draw what trains in each layer")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the plan."""
    # Imported here so that `spafit --help` does not wait for torch.
    from spafit_hf.architecture import register_architecture
    from spafit_hf.planner import comparison_table, plan_each, plan_what_fits

    if args.architecture:
        register_architecture(args.architecture)

    compares = args.strategy is None and args.n1 is None and args.n2 is None
    names = METHODS if compares else [args.strategy or "spafit-4-9-II"]
    wanted = [_strategy(name, args) for name in names]
    refused: tuple[tuple[Strategy, str], ...] = ()
    if compares:
        plans, refused = plan_what_fits(args.model, wanted, args.num_labels)
    else:
        plans = plan_each(args.model, wanted, args.num_labels)
    if args.json:
        facts = [each.to_dict(args.batch, args.seq) for each in plans]
        facts += [{"strategy": strategy.to_dict(), "refused": reason} for strategy, reason in refused]
        print(json.dumps(facts if compares else facts[0], indent=2))
        return
    if compares:
        parts = [comparison_table(plans, args.batch, args.seq, refused=refused)]
    else:
        parts = [plans[0].table(args.batch, args.seq)]
    parts += [each.layer_table() for each in plans if args.layers]
    print("\n\n".join(parts))


def _strategy(name: str, args: argparse.Namespace) -> Strategy:
    """The strategy of a name or file, with the bounds and settings that were given."""
    strategy = Strategy.coerce(name)
    if args.n1 is not None or args.n2 is not None:
        if args.n1 is None or args.n2 is None:
            raise ValueError("--n1 and --n2 go together: give the last layer of group 1 and that of group 2.")
        strategy = strategy.with_bounds(args.n1, args.n2)
    settings = {"r": args.lora_r, "lora_alpha": args.lora_alpha}
    given = {name: value for name, value in settings.items() if value is not None}
    return strategy.with_lora(**given) if given else strategy
