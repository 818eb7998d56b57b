"""Nine adapters for one text: `predict_all` against a loop over PEFT's `set_adapter` with the same adapters.

    python benchmarks/predictor.py                                      the packaged encoder, 16 to 128 tokens
    python benchmarks/predictor.py --threads 1 --clock cpu              on a machine that is busy with other things
    python benchmarks/predictor.py --base google-bert/bert-large-cased --strategy spafit-8-16-II

The adapters have random values, bias deltas included, and heads of GLUE's nine sizes; speed asks for no more. Both
sides read the same adapter folders and start from the string: tokens, forward passes, probabilities. One round runs
every way once, so that what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase, logging

from spafit_hf import Strategy, get_spafit_model, load_adapter, save_adapter
from spafit_hf.glue import TASKS
from spafit_hf.predictor import SpafitPredictor
from spafit_hf.run import resolve_base

LOOP = "loop over set_adapter"
OURS = "predict_all"
SENTENCE = "a quiet and generous film about two brothers who never learn to talk until the day it is too late"


def write_adapters(base: str, strategy: Strategy, folder: Path) -> list[str]:
    """An adapter per GLUE task with random values."""
    for seed, task in enumerate(TASKS.values()):
        torch.manual_seed(seed)
        names = dict(enumerate(task.labels or ("score",)))
        model = AutoModelForSequenceClassification.from_pretrained(base, id2label=names)
        model.config.problem_type = task.problem_type
        wrapped = get_spafit_model(model, strategy)
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                std = 0.02 if "lora_" in name else 0.05
                parameter.data += std * torch.randn_like(parameter)
        save_adapter(wrapped, folder / task.name)
    return list(TASKS)


def load_loop(base: str, folder: Path, names: list[str]) -> PeftModel:
    """The same adapters side by side in one `PeftModel`."""
    model = AutoModelForSequenceClassification.from_pretrained(base)
    for name in names:
        model = load_adapter(model, folder / name, adapter_name=name)
    return model.eval()


def text_of(tokens: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """A text of so many tokens, special ones included."""
    sentence, words = SENTENCE.split(), list[str]()
    while len(tokenizer(" ".join(words))["input_ids"]) < tokens:
        words.append(sentence[len(words) % len(sentence)])
    return " ".join(words)


def loop_over(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, names: list[str], text: str
) -> dict[str, torch.Tensor]:
    """What somebody with PEFT alone would write."""
    answers = {}
    with torch.inference_mode():
        batch = tokenizer(text, return_tensors="pt")
        for name in names:
            model.set_adapter(name)
            logits = model(**batch).logits[0]
            answers[name] = logits.softmax(-1) if len(logits) > 1 else logits
    return answers


def largest_difference(expected: dict[str, torch.Tensor], predictor: SpafitPredictor, text: str) -> float:
    """Over all probabilities and values of all adapters."""
    found = predictor.predict_all(text)
    return max(
        float((value - torch.tensor(list((found[name].scores or {"": found[name].value}).values()))).abs().max())
        for name, value in expected.items()
    )


def measure(ways: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every way in every round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded", help="Hub id or folder; embedded for the encoder from PyPI")
    parser.add_argument("--strategy", default="spafit-4-9-II")
    parser.add_argument("--lora_r", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 24, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch (default: as it chooses)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: time of this process alone")
    parser.add_argument("--json", type=Path, help="write everything that was measured")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    strategy = Strategy.from_name(args.strategy)
    if any(stratum.lora for stratum in strategy.strata):
        strategy = strategy.with_lora(r=args.lora_r, lora_alpha=2 * args.lora_r)
    base = resolve_base(args.base)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        names = write_adapters(base, strategy, Path(scratch))
        looped = load_loop(base, Path(scratch), names)
        tokenizer = AutoTokenizer.from_pretrained(base)
        predictor = SpafitPredictor(base, device="cpu")
        per_row = SpafitPredictor(base, device="cpu")
        for name in names:
            predictor.add(Path(scratch) / name, name)
            per_row.add(Path(scratch) / name, name)
        # what each step is worth: the same rows without the shared layers, and the adapters in turn
        per_row._serving.borders = {}
        facts = predictor.facts(names[0])
        print(
            f"{args.base}, {strategy.name}, r {args.lora_r}: {len(names)} adapters, layers {facts.layers[0]} to "
            f"{facts.layers[-1]} of {facts.depth} changed; {torch.get_num_threads()} threads, {args.clock} time, "
            f"{args.rounds} rounds\n"
        )
        print("| tokens | way | ms (quartiles) | over the loop | largest difference |")
        print("| --- | --- | --- | --- | --- |")
        for tokens in args.tokens:
            text = text_of(tokens, tokenizer)
            ways: dict[str, Callable[[], object]] = {
                LOOP: lambda text=text: loop_over(looped, tokenizer, names, text),  # type: ignore[misc]
                "predict, adapters in turn": lambda text=text: [  # type: ignore[misc]
                    predictor.predict_all(text, [name]) for name in names
                ],
                "predict_all, no shared layers": lambda text=text: per_row.predict_all(text),  # type: ignore[misc]
                OURS: lambda text=text: predictor.predict_all(text),  # type: ignore[misc]
            }
            seconds = measure(ways, args.rounds, clock)
            difference = largest_difference(loop_over(looped, tokenizer, names, text), predictor, text)
            for way, values in seconds.items():
                ratios = [own / loop for own, loop in zip(values, seconds[LOOP], strict=True)]
                low, _, high = (1000 * value for value in statistics.quantiles(values, n=4))
                row = {
                    "tokens": tokens,
                    "way": way,
                    "ms": 1000 * statistics.median(values),
                    "quartiles": (low, high),
                    "ratio": statistics.median(values) / statistics.median(seconds[LOOP]),
                    "ratio_of_rounds": statistics.quantiles(ratios, n=4),
                    "largest_difference": difference if way == OURS else None,
                }
                rows.append(row)
                shown = f"{difference:.0e}" if way == OURS else ""
                print(
                    f"| {tokens} | {way} | {row['ms']:.1f} ({low:.1f} to {high:.1f}) | {row['ratio']:.2f} | {shown} |"
                )
                sys.stdout.flush()
    if args.json:
        settings = {key: str(value) for key, value in vars(args).items()}
        machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        result = {"settings": settings, "machine": machine, "rows": rows}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
